// Matrix products of numbers rounded to bf16, with vectors: C tiles of 12 x 32, two numbers of k a step, sums in fp32.
//
// One instruction multiplies 32 pairs and adds them by twos, twice what fp32 vectors do. Products and their sums by twos are rounded
// as the processor does (Intel, Software Developer's Manual, vol. 2, VDPBF16PS); a number of fp16 loses 3 of its 11 digits on the
// way in. Infinities and NaNs are what they are. Reference: mil/fast.py.
#include "kernels.h"
#include "isa/words.h"

namespace torchane::bf16 {
namespace {

constexpr int ROWS = 12;
constexpr int VECTORS = 2;
constexpr int COLUMNS = 16 * VECTORS;
constexpr int DEPTH = 2;
constexpr int64_t BLOCK = 32;       // numbers of k that are packed at once
constexpr int64_t SLACK = 16 * 16;  // words that may be written behind a panel: a block whole, and a row of 16

// panel[k / 2][width] pairs. Rows are written in order, each 16 words wide: what one writes beyond a narrower panel, the next replaces.
template <int WIDTH>
void pack_along_k(uint32_t* panel, const half_t* from, int64_t stride, int64_t count, int64_t k) {
    for (int64_t p = 0; p < k; p += BLOCK, panel += BLOCK / 2 * WIDTH) {
        __m512i groups[(WIDTH + 15) / 16][16];
#pragma GCC unroll 2
        for (int group = 0; group * 16 < WIDTH; ++group) {
            read_pairs<true>(groups[group], from + p + group * 16 * stride, stride, count - group * 16, k - p);
            transpose(groups[group]);
        }
        for (int i = 0; i < 16; ++i)
#pragma GCC unroll 2
            for (int group = 0; group * 16 < WIDTH; ++group)
                _mm512_storeu_si512(panel + i * WIDTH + group * 16, rounded(groups[group][i]));
    }
}

// The same of rows of neighbours, two of them a pair: of short pieces of k as fast as of long ones.
template <int WIDTH>
void pack_across(uint32_t* panel, const half_t* from, int64_t stride, int64_t count, int64_t k) {
    for (int64_t p = 0; p < k; p += 2, from += 2 * stride, panel += WIDTH)
#pragma GCC unroll 2
        for (int group = 0; group * 16 < WIDTH; ++group) {
            const __mmask16 inside = static_cast<__mmask16>(first_of_32(count - group * 16));
            const __m256i even = _mm256_maskz_loadu_epi16(inside, from + group * 16);
            const __m256i odd = p + 1 < k ? _mm256_maskz_loadu_epi16(inside, from + stride + group * 16) : _mm256_setzero_si256();
            _mm512_storeu_si512(panel + group * 16, rounded(paired(even, odd)));
        }
}

template <int WIDTH>
bool pack(void* panel, const half_t* from, int64_t stride, bool along_k, int64_t count, int64_t k) {
    const int64_t rows = count < WIDTH ? count : WIDTH;
    if (along_k) pack_along_k<WIDTH>(static_cast<uint32_t*>(panel), from, stride, rows, k);
    else pack_across<WIDTH>(static_cast<uint32_t*>(panel), from, stride, rows, k);
    return true;
}

// Adds to the sums of the first COUNT rows of a panel.
template <int COUNT>
TORCHANE_INLINE void add_rows(__m512 (&sums)[COUNT][VECTORS], const uint32_t* a, const uint32_t* b, int64_t k) {
    for (int64_t p = 0; p < k / DEPTH; ++p) {
        __m512bh pairs[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) pairs[v] = (__m512bh)_mm512_loadu_si512(b + p * COLUMNS + v * 16);
#pragma GCC unroll 16
        for (int i = 0; i < COUNT; ++i) {
            const __m512bh x = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[p * ROWS + i]));
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) sums[i][v] = _mm512_dpbf16_ps(sums[i][v], x, pairs[v]);
        }
    }
}

template <int COUNT>
void multiply_rows(const uint32_t* a, const uint32_t* b, int64_t k, float* c, bool add) {
    __m512 sums[COUNT][VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[i][v] = add ? _mm512_loadu_ps(c + i * COLUMNS + v * 16) : _mm512_setzero_ps();
    add_rows<COUNT>(sums, a, b, k);
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) _mm512_storeu_ps(c + i * COLUMNS + v * 16, sums[i][v]);
}

template <int COUNT>
void multiply_rows_into(const uint32_t* a, const uint32_t* b, int64_t k, half_t* to, int64_t stride, int64_t count) {
    __m512 sums[COUNT][VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[i][v] = _mm512_setzero_ps();
    add_rows<COUNT>(sums, a, b, k);
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i) {
        if (i >= count) break;
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * stride + v * 16),
                                _mm512_cvtps_ph(sums[i][v], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

// A few rows at the end of a matrix cost what they are, in steps of four.
void multiply(const void* panel_a, const void* panel_b, int64_t k, float* c, bool add, int64_t count) {
    const uint32_t* a = static_cast<const uint32_t*>(panel_a);
    const uint32_t* b = static_cast<const uint32_t*>(panel_b);
    if (count <= 4) return multiply_rows<4>(a, b, k, c, add);
    if (count <= 8) return multiply_rows<8>(a, b, k, c, add);
    multiply_rows<ROWS>(a, b, k, c, add);
}

void multiply_into(const void* panel_a, const void* panel_b, int64_t k, half_t* to, int64_t stride, int64_t count) {
    const uint32_t* a = static_cast<const uint32_t*>(panel_a);
    const uint32_t* b = static_cast<const uint32_t*>(panel_b);
    if (count <= 4) return multiply_rows_into<4>(a, b, k, to, stride, count);
    if (count <= 8) return multiply_rows_into<8>(a, b, k, to, stride, count);
    multiply_rows_into<ROWS>(a, b, k, to, stride, count);
}

template <int WIDTH>
int64_t panel_bytes(int64_t k) {
    return (k / DEPTH * WIDTH + SLACK * VECTORS) * static_cast<int64_t>(sizeof(uint32_t));
}

void nothing() {}

}  // namespace

const MatmulKernel& matmul() {
    static const MatmulKernel kernel = {
        .rows = ROWS,
        .columns = COLUMNS,
        .depth = DEPTH,
        .panel_a_bytes = panel_bytes<ROWS>,
        .panel_b_bytes = panel_bytes<COLUMNS>,
        .pack_a = pack<ROWS>,
        .pack_b = pack<COLUMNS>,
        .multiply = multiply,
        .multiply_into = multiply_into,
        .store = store_rows_of_32,
        .begin = nothing,
        .end = nothing,
        .needs_finite = false,
        .piece = 8,
    };
    return kernel;
}

}  // namespace torchane::bf16
