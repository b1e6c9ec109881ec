// Exchanges rows and columns of 16-bit numbers.
//
// The inner block is `static`, so that each instruction set compiles a copy of its own.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace torchane {

// to[j][i] = from[i][j] for i < rows, j < columns; strides lead from one row of each to its next.
void transpose_16(uint16_t* to, int64_t to_stride, const uint16_t* from, int64_t from_stride, int64_t rows, int64_t columns);

#if defined(__x86_64__)
using v8 = __m128i;
static inline v8 load8(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
static inline void store8(uint16_t* p, v8 v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }
static inline v8 low(v8 a, v8 b) { return _mm_unpacklo_epi16(a, b); }
static inline v8 high(v8 a, v8 b) { return _mm_unpackhi_epi16(a, b); }
#elif defined(__aarch64__)
using v8 = uint16x8_t;
static inline v8 load8(const uint16_t* p) { return vld1q_u16(p); }
static inline void store8(uint16_t* p, v8 v) { vst1q_u16(p, v); }
static inline v8 low(v8 a, v8 b) { return vzip1q_u16(a, b); }
static inline v8 high(v8 a, v8 b) { return vzip2q_u16(a, b); }
#endif

// Three rounds of interleaving row i with row i + 4 exchange the 8 rows with the 8 columns.
static inline __attribute__((always_inline)) void transpose_8x8(v8 (&r)[8]) {
#pragma GCC unroll 3
    for (int round = 0; round < 3; ++round) {
        v8 t[8];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) t[2 * i] = low(r[i], r[i + 4]), t[2 * i + 1] = high(r[i], r[i + 4]);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) r[i] = t[i];
    }
}

}  // namespace torchane
