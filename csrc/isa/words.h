// fp16 numbers as bf16 in pairs of neighbours along k, the form that products of bf16 take: 32-bit words, and how 16 x 16 of them turn.
//
// Included by what is compiled for AVX-512 with bf16; everything is static, for the reason in simd.h.
#pragma once

#include <immintrin.h>

#include "half.h"

#define TORCHANE_INLINE static inline __attribute__((always_inline))

namespace torchane {

// A mask of the first n of 32.
TORCHANE_INLINE __mmask32 first_of_32(int64_t n) { return n >= 32 ? ~0u : (1u << (n < 0 ? 0 : n)) - 1; }

// Number i of both, next to each other.
TORCHANE_INLINE __m512i paired(__m256i even, __m256i odd) {
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    return _mm512_permutex2var_epi16(_mm512_castsi256_si512(even), order, _mm512_castsi256_si512(odd));
}

// 16 rows or columns by 32 numbers of k, read as 16 x 16 pairs of fp16 numbers. along_k: r[i] holds the pairs of row i; else r[i]
// holds pair i of all rows. What lies beyond `count` rows or k numbers is 0.
template <bool along_k>
TORCHANE_INLINE void read_pairs(__m512i (&r)[16], const half_t* from, int64_t stride, int64_t count, int64_t k) {
    if constexpr (along_k) {
        const __mmask32 inside = first_of_32(k);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i)
            r[i] = i < count ? _mm512_maskz_loadu_epi16(inside, from + i * stride) : _mm512_setzero_si512();
    } else {
        const __mmask16 inside = static_cast<__mmask16>(first_of_32(count));
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            const __m256i even = 2 * i < k ? _mm256_maskz_loadu_epi16(inside, from + 2 * i * stride) : _mm256_setzero_si256();
            const __m256i odd =
                2 * i + 1 < k ? _mm256_maskz_loadu_epi16(inside, from + (2 * i + 1) * stride) : _mm256_setzero_si256();
            r[i] = paired(even, odd);
        }
    }
}

// Rows and columns of a 16 x 16 matrix of 32-bit words change places.
TORCHANE_INLINE void transpose(__m512i (&r)[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    // r[4 q + c] holds, in its lane l, rows 4 q .. 4 q + 3 of column 4 l + c.
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        const __m512i low_01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);    // lanes 0, 2 of q = 0, 1
        const __m512i high_01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);   // lanes 1, 3
        const __m512i low_23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        const __m512i high_23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        t[c] = _mm512_shuffle_i32x4(low_01, low_23, 0x88);          // lane 0: column c
        t[8 + c] = _mm512_shuffle_i32x4(low_01, low_23, 0xdd);      // lane 2: column 8 + c
        t[4 + c] = _mm512_shuffle_i32x4(high_01, high_23, 0x88);    // lane 1: column 4 + c
        t[12 + c] = _mm512_shuffle_i32x4(high_01, high_23, 0xdd);   // lane 3: column 12 + c
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// 32 fp16 numbers, each rounded once to bf16, to nearest even.
TORCHANE_INLINE __m512i rounded(__m512i numbers) {
    const __m512 lower = _mm512_cvtph_ps(_mm512_castsi512_si256(numbers));
    const __m512 upper = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(numbers, 1));
    return (__m512i)_mm512_cvtne2ps_pbh(upper, lower);
}

// Rounds the upper left (rows, columns) numbers of c, 32 to a row, to fp16.
static inline void store_rows_of_32(half_t* to, int64_t stride, const float* c, int64_t rows, int64_t columns) {
    const __mmask16 left = static_cast<__mmask16>(first_of_32(columns)), right = static_cast<__mmask16>(first_of_32(columns) >> 16);
    for (int64_t i = 0; i < rows; ++i, to += stride, c += 32) {
        constexpr int to_nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        _mm256_mask_storeu_epi16(to, left, _mm512_cvtps_ph(_mm512_loadu_ps(c), to_nearest));
        _mm256_mask_storeu_epi16(to + 16, right, _mm512_cvtps_ph(_mm512_loadu_ps(c + 16), to_nearest));
    }
}

}  // namespace torchane
