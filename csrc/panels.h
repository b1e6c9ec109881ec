// One operand of a matrix product, and the panels that a kernel takes it in.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"
#include "pool.h"

namespace torchane {

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// One operand of one product: `outer` rows of A or columns of B.
struct Side {
    const half_t* data;
    int64_t stride;
    bool along_k;
    int64_t outer;

    const half_t* at(int64_t row, int64_t k) const { return data + (along_k ? row * stride + k : k * stride + row); }
};

// One tile of a product whose sums are one piece, rounded: its upper left (rows, columns) numbers. c: room for the sums.
inline void multiply_tile(const MatmulKernel& kernel, const void* a, const void* b, int64_t k, float* c, half_t* to, int64_t stride, int64_t rows, int64_t columns) {
    if (kernel.multiply_into != nullptr && columns == kernel.columns) return kernel.multiply_into(a, b, k, to, stride, rows);
    kernel.multiply(a, b, k, c, false, rows);
    kernel.store(to, stride, c, rows, columns);
}

// Panels of `outer` rows of A, or columns of B, over k numbers.
struct Panels {
    Panels(const MatmulKernel& kernel, bool is_a, int64_t outer, int64_t k)
        : pack_one(is_a ? kernel.pack_a : kernel.pack_b), width(is_a ? kernel.rows : kernel.columns), count(ceil_div(outer, width)),
          bytes(round_up((is_a ? kernel.panel_a_bytes : kernel.panel_b_bytes)(round_up(k, kernel.depth)), 64)) {}

    int64_t size() const { return count * bytes; }
    // Panel `index` of the side, numbers [begin, begin + k) of each row or column.
    void pack(char* to, const Side& side, int64_t index, int64_t begin, int64_t k) const {
        pack_one(to, side.at(index * width, begin), side.stride, side.along_k, std::min(width, side.outer - index * width), k);
    }
    void pack_all(char* to, const Side& side, int64_t begin, int64_t k) const {
        for (int64_t i = 0, end = ceil_div(side.outer, width); i < end; ++i) pack(to + i * bytes, side, i, begin, k);
    }

    bool (*pack_one)(void*, const half_t*, int64_t, bool, int64_t, int64_t);
    int64_t width, count, bytes;
};

}  // namespace torchane
