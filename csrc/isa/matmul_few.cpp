// Products with a few rows or columns, of one token above all: the large operand is read once, as it lies, and never packed.
//
//     large along k   16 or 32 of its rows at once; blocks of 8 x 8 numbers are turned in registers
//     along its rows  one number of the small operand after another times whole vectors
//
// Each sum takes its products in the order of k, as the tiles of matmul_vector.cpp do: the same bits. Reference: mil/ops/linear.py, matmul.
#include "isa/table.h"
#include "isa/simd.h"

namespace torchane::TORCHANE_ISA {
namespace {

constexpr int EIGHT = 8;
#if defined(__AVX512F__)
constexpr int FEW = 8;
constexpr int WIDTH = 32;
#else
constexpr int FEW = 4;
constexpr int WIDTH = 16;
#endif
constexpr int64_t LINE = 32;  // numbers in a line of the cache
constexpr int64_t AHEAD = 256, ROWS_AHEAD = 16;

int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

// LANES or eight numbers, whichever is more, of one k: what a block of rows gives when it is turned.
constexpr int TURNED = LANES > EIGHT ? LANES : EIGHT;

// The products of TURNED rows with EIGHT numbers of k each, which `next` gives: sums[i][v] are of vector v of these rows.
template <int COUNT, typename Next>
TORCHANE_INLINE void add_block(vf (&sums)[COUNT][TURNED / LANES], const float* small, Next&& next) {
    v8 turned[TURNED / EIGHT][EIGHT];
#pragma GCC unroll 2
    for (int g = 0; g < TURNED / EIGHT; ++g) {
#pragma GCC unroll 8
        for (int i = 0; i < EIGHT; ++i) turned[g][i] = load8(next(g * EIGHT + i));
        transpose_8x8(turned[g]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < EIGHT; ++j) {
        vf large[TURNED / LANES];
#if defined(__AVX512F__)
        large[0] = _mm512_cvtph_ps(_mm256_set_m128i(turned[1][j], turned[0][j]));
#elif defined(__AVX2__)
        large[0] = _mm256_cvtph_ps(turned[0][j]);
#else
        float wide[EIGHT];
        widen8(wide, turned[0][j]);
        for (int v = 0; v < TURNED / LANES; ++v) large[v] = load(wide + v * LANES);
#endif
#pragma GCC unroll 8
        for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < TURNED / LANES; ++v) sums[i][v] = fma(set1(small[j * COUNT + i]), large[v], sums[i][v]);
    }
}

// WIDTH rows that lie along k. Of rows that are not there, the last one is read again. A line of each row is fetched at once: rows a power of two
// apart fall into few sets of the nearest cache, and would push each other out between two reads of a line.
template <int COUNT>
void rows_along_k(float* to, const half_t* from, int64_t stride, int64_t count, const float* small, int64_t k) {
    constexpr int BLOCKS = WIDTH / TURNED;
    vf sums[BLOCKS][COUNT][TURNED / LANES];
    for (auto& block : sums)
        for (auto& row : block)
            for (vf& one : row) one = set1(0.0f);
    const half_t* rows[WIDTH];
    for (int64_t i = 0; i < WIDTH; ++i) rows[i] = from + smaller_of(i, count - 1) * stride;
    half_t lines[WIDTH][LINE];
    int64_t p = 0;
    for (; p + LINE <= k; p += LINE) {
        for (int i = 0; i < WIDTH; ++i) {
            __builtin_prefetch(rows[i] + p + AHEAD, 0, 2);
            __builtin_memcpy(lines[i], rows[i] + p, sizeof lines[i]);
        }
        for (int q = 0; q < LINE; q += EIGHT)
#pragma GCC unroll 2
            for (int b = 0; b < BLOCKS; ++b)
                add_block<COUNT>(sums[b], small + (p + q) * COUNT, [&](int i) { return lines[b * TURNED + i] + q; });
    }
    for (; p < k; ++p)
        for (int b = 0; b < BLOCKS; ++b)
            for (int v = 0; v < TURNED / LANES; ++v) {
                half_t column[LANES];
                for (int i = 0; i < LANES; ++i) column[i] = rows[b * TURNED + v * LANES + i][p];
                for (int i = 0; i < COUNT; ++i) sums[b][i][v] = fma(set1(small[p * COUNT + i]), load(column), sums[b][i][v]);
            }
    for (int b = 0; b < BLOCKS; ++b)
        for (int i = 0; i < COUNT; ++i)
            for (int v = 0; v < TURNED / LANES; ++v) store(to + i * WIDTH + b * TURNED + v * LANES, sums[b][i][v]);
}

// As many rows as VECTORS hold, whose neighbours lie side by side; `stride` leads to the next k.
template <int COUNT, int VECTORS>
void rows_along_rows(float* to, const half_t* from, int64_t stride, int64_t count, const float* small, int64_t k) {
    vf sums[COUNT][VECTORS];
    for (auto& row : sums)
        for (vf& one : row) one = set1(0.0f);
    for (int64_t p = 0; p < k; ++p, from += stride) {
        vf large[VECTORS];
        if (count >= VECTORS * LANES) {
            for (int64_t i = 0; i < VECTORS * LANES; i += LINE) __builtin_prefetch(from + ROWS_AHEAD * stride + i, 0, 2);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) large[v] = load(from + v * LANES);
        } else {
            for (int v = 0; v < VECTORS; ++v) {
                const int64_t n = smaller_of(LANES, count - v * LANES);
                large[v] = n > 0 ? load_n(from + v * LANES, n) : set1(0.0f);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sums[i][v] = fma(set1(small[p * COUNT + i]), large[v], sums[i][v]);
    }
    for (int i = 0; i < COUNT; ++i)
        for (int v = 0; v < VECTORS; ++v) store(to + i * VECTORS * LANES + v * LANES, sums[i][v]);
}

template <int COUNT>
void multiply(half_t* out, int64_t to_next_large, int64_t to_next_small, const half_t* large, int64_t stride, bool along_k, int64_t rows,
              const float* small, int64_t k) {
    constexpr int VECTORS = COUNT == 1 ? 8 : COUNT == 2 ? 4 : 2;
    const int64_t width = along_k ? WIDTH : VECTORS * LANES;
    float sums[COUNT * (WIDTH > VECTORS * LANES ? WIDTH : VECTORS * LANES)];
    for (int64_t row = 0; row < rows; row += width) {
        const int64_t count = smaller_of(width, rows - row);
        if (along_k) rows_along_k<COUNT>(sums, large + row * stride, stride, count, small, k);
        else rows_along_rows<COUNT, VECTORS>(sums, large + row, stride, count, small, k);
        for (int i = 0; i < COUNT; ++i) {
            half_t rounded[8 * LANES];
            for (int64_t j = 0; j < width; j += LANES) store(rounded + j, load(sums + i * width + j));
            half_t* to = out + row * to_next_large + i * to_next_small;
            for (int64_t j = 0; j < count; ++j) to[j * to_next_large] = rounded[j];
        }
    }
}

}  // namespace

void fill_few(Kernels& table) {
    table.few = {
        .most = FEW,
        .block = 8 * LANES > WIDTH ? 8 * LANES : WIDTH,
        .multiply = {multiply<1>, multiply<2>, multiply<3>, multiply<4>,
#if defined(__AVX512F__)
                     multiply<5>, multiply<6>, multiply<7>, multiply<8>
#endif
        },
    };
}

}  // namespace torchane::TORCHANE_ISA
