// Rows of a table: looked up, and added up where a gradient goes back to them.
#pragma once

#include <cstdint>

namespace torchane {

// Whether each index is of one of so many rows.
bool are_rows(const int64_t* index, int64_t n, int64_t rows);
// to (n, columns): row index[i] of the table.
void take_rows(float* to, const float* table, const int64_t* index, int64_t n, int64_t columns);
// to (rows, columns): of each row the sum of those of `from` (n, columns) whose index it is, one after the other, but for the `skipped` one.
void sum_rows(float* to, int64_t rows, const float* from, const int64_t* index, int64_t n, int64_t columns, int64_t skipped);

}  // namespace torchane
