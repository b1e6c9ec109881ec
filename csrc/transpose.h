// Exchanges rows and columns of 16-bit numbers.
#pragma once

#include <cstdint>

namespace torchane {

// to[j][i] = from[i][j] for i < rows, j < columns; strides lead from one row of each to its next.
void transpose_16(uint16_t* to, int64_t to_stride, const uint16_t* from, int64_t from_stride, int64_t rows, int64_t columns);

}  // namespace torchane
