// A vector of fp32 numbers, spelled alike for every instruction set, and its way from and to fp16.
//
//     vf      LANES numbers in fp32; + - * / as usual
//     vm      a mask, from less() and friends, for select(mask, if_true, if_false)
//
// The file that includes this is compiled once per instruction set, with TORCHANE_ISA naming it. Nothing
// here may become a symbol that another instruction set's copy could be linked against: everything is
// static, and no template of the standard library is used.
#pragma once

#include <cstdint>

#include "half.h"
#include "transpose.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define TORCHANE_INLINE static inline __attribute__((always_inline))

namespace torchane::TORCHANE_ISA {

#if defined(__AVX512F__)

constexpr int LANES = 16;
using vf = __m512;
using vm = __mmask16;

TORCHANE_INLINE vf set1(float x) { return _mm512_set1_ps(x); }
TORCHANE_INLINE vf load(const float* p) { return _mm512_loadu_ps(p); }
TORCHANE_INLINE void store(float* p, vf v) { _mm512_storeu_ps(p, v); }
TORCHANE_INLINE vf load(const half_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
TORCHANE_INLINE __m256i to_half(vf v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
TORCHANE_INLINE void store(half_t* p, vf v) { _mm256_storeu_si256((__m256i*)p, to_half(v)); }
TORCHANE_INLINE __mmask16 first(int64_t n) { return (__mmask16)((1u << n) - 1); }
TORCHANE_INLINE vf load_n(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
TORCHANE_INLINE void store_n(float* p, vf v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
TORCHANE_INLINE vf load_n(const half_t* p, int64_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }
TORCHANE_INLINE void store_n(half_t* p, vf v, int64_t n) { _mm256_mask_storeu_epi16(p, first(n), to_half(v)); }
TORCHANE_INLINE vf load_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
TORCHANE_INLINE vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
TORCHANE_INLINE vf sqrt(vf a) { return _mm512_sqrt_ps(a); }
TORCHANE_INLINE vf abs(vf a) { return _mm512_abs_ps(a); }
TORCHANE_INLINE vf nearest(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
TORCHANE_INLINE vf times_power_of_2(vf a, vf n) { return _mm512_scalef_ps(a, n); }
TORCHANE_INLINE vm less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
TORCHANE_INLINE vm equal(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
TORCHANE_INLINE vm unordered(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
TORCHANE_INLINE vf select(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
TORCHANE_INLINE vf raw_max(vf a, vf b) { return _mm512_max_ps(a, b); }  // b where either is NaN
TORCHANE_INLINE vf raw_min(vf a, vf b) { return _mm512_min_ps(a, b); }

#elif defined(__AVX2__)

constexpr int LANES = 8;
using vf = __m256;
using vm = __m256;

TORCHANE_INLINE vf set1(float x) { return _mm256_set1_ps(x); }
TORCHANE_INLINE vf load(const float* p) { return _mm256_loadu_ps(p); }
TORCHANE_INLINE void store(float* p, vf v) { _mm256_storeu_ps(p, v); }
TORCHANE_INLINE vf load(const half_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
TORCHANE_INLINE void store(half_t* p, vf v) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
TORCHANE_INLINE vf load_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
TORCHANE_INLINE vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
TORCHANE_INLINE vf sqrt(vf a) { return _mm256_sqrt_ps(a); }
TORCHANE_INLINE vf abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
TORCHANE_INLINE vf nearest(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
TORCHANE_INLINE vf times_power_of_2(vf a, vf n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return a * _mm256_castsi256_ps(exponent);
}
TORCHANE_INLINE vm less(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
TORCHANE_INLINE vm equal(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
TORCHANE_INLINE vm unordered(vf a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
TORCHANE_INLINE vf select(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }
TORCHANE_INLINE vf raw_max(vf a, vf b) { return _mm256_max_ps(a, b); }
TORCHANE_INLINE vf raw_min(vf a, vf b) { return _mm256_min_ps(a, b); }

#elif defined(__aarch64__)

constexpr int LANES = 4;
using vf = float32x4_t;
using vm = uint32x4_t;

TORCHANE_INLINE vf set1(float x) { return vdupq_n_f32(x); }
TORCHANE_INLINE vf load(const float* p) { return vld1q_f32(p); }
TORCHANE_INLINE void store(float* p, vf v) { vst1q_f32(p, v); }
TORCHANE_INLINE vf load(const half_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
TORCHANE_INLINE void store(half_t* p, vf v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
TORCHANE_INLINE vf load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
TORCHANE_INLINE vf fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
TORCHANE_INLINE vf sqrt(vf a) { return vsqrtq_f32(a); }
TORCHANE_INLINE vf abs(vf a) { return vabsq_f32(a); }
TORCHANE_INLINE vf nearest(vf a) { return vrndnq_f32(a); }
TORCHANE_INLINE vf times_power_of_2(vf a, vf n) {
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23)));
}
TORCHANE_INLINE vm less(vf a, vf b) { return vcltq_f32(a, b); }
TORCHANE_INLINE vm equal(vf a, vf b) { return vceqq_f32(a, b); }
TORCHANE_INLINE vm unordered(vf a) { return vmvnq_u32(vceqq_f32(a, a)); }
TORCHANE_INLINE vf select(vm m, vf a, vf b) { return vbslq_f32(m, a, b); }
TORCHANE_INLINE vf raw_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
TORCHANE_INLINE vf raw_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }

#elif defined(__x86_64__)

constexpr int LANES = 4;
using vf = __m128;
using vm = __m128;

TORCHANE_INLINE vf set1(float x) { return _mm_set1_ps(x); }
TORCHANE_INLINE vf load(const float* p) { return _mm_loadu_ps(p); }
TORCHANE_INLINE void store(float* p, vf v) { _mm_storeu_ps(p, v); }
TORCHANE_INLINE vf load(const half_t* p) {
    return _mm_setr_ps(half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3]));
}
TORCHANE_INLINE void store(half_t* p, vf v) {
    float x[4];
    _mm_storeu_ps(x, v);
    for (int i = 0; i < 4; ++i) p[i] = float_to_half(x[i]);
}
TORCHANE_INLINE vf load_bf16(const uint16_t* p) {
    return _mm_setr_ps(bf16_to_float(p[0]), bf16_to_float(p[1]), bf16_to_float(p[2]), bf16_to_float(p[3]));
}
TORCHANE_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }  // rounds twice; the same where a * b is exact
TORCHANE_INLINE vf sqrt(vf a) { return _mm_sqrt_ps(a); }
TORCHANE_INLINE vf abs(vf a) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), a); }
TORCHANE_INLINE vf nearest(vf a) { return _mm_cvtepi32_ps(_mm_cvtps_epi32(a)); }  // |a| < 2^31
TORCHANE_INLINE vf times_power_of_2(vf a, vf n) {
    return a * _mm_castsi128_ps(_mm_slli_epi32(_mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127)), 23));
}
TORCHANE_INLINE vm less(vf a, vf b) { return _mm_cmplt_ps(a, b); }
TORCHANE_INLINE vm equal(vf a, vf b) { return _mm_cmpeq_ps(a, b); }
TORCHANE_INLINE vm unordered(vf a) { return _mm_cmpunord_ps(a, a); }
TORCHANE_INLINE vf select(vm m, vf a, vf b) { return _mm_or_ps(_mm_and_ps(m, a), _mm_andnot_ps(m, b)); }
TORCHANE_INLINE vf raw_max(vf a, vf b) { return _mm_max_ps(a, b); }
TORCHANE_INLINE vf raw_min(vf a, vf b) { return _mm_min_ps(a, b); }

#else
#error "torchane's kernels know x86-64 and arm64"
#endif

#if !defined(__AVX512F__)
template <typename T>
TORCHANE_INLINE vf load_n(const T* p, int64_t n) {
    T whole[LANES] = {};
    for (int64_t i = 0; i < n; ++i) whole[i] = p[i];
    return load(whole);
}
template <typename T>
TORCHANE_INLINE void store_n(T* p, vf v, int64_t n) {
    T whole[LANES];
    store(whole, v);
    for (int64_t i = 0; i < n; ++i) p[i] = whole[i];
}
#endif

// Stores the first as fp16 and says whether the second rounds to other numbers.
TORCHANE_INLINE bool store_and_compare(half_t* p, vf a, vf b) {
#if defined(__AVX512F__)
    const __m256i x = to_half(a), y = to_half(b);
    _mm256_storeu_si256((__m256i*)p, x);
    return _mm256_cmpneq_epi16_mask(x, y) != 0;
#elif defined(__AVX2__)
    const __m128i x = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT), y = _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128((__m128i*)p, x);
    return _mm_movemask_epi8(_mm_cmpeq_epi16(x, y)) != 0xffff;
#else
    half_t y[LANES];
    store(p, a);
    store(y, b);
    bool found = false;
    for (int i = 0; i < LANES; ++i) found |= p[i] != y[i];
    return found;
#endif
}

// Each number rounded to fp16 and widened again.
TORCHANE_INLINE vf through_half(vf v) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(to_half(v));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    return vcvt_f32_f16(vcvt_f16_f32(v));
#else
    half_t h[LANES];
    store(h, v);
    return load(h);
#endif
}

// Eight fp16 numbers, widened.
TORCHANE_INLINE void widen8(float* p, v8 h) {
#if defined(__AVX2__)
    _mm256_storeu_ps(p, _mm256_cvtph_ps(h));
#elif defined(__aarch64__)
    store(p, vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(h))));
    store(p + 4, vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(h))));
#else
    half_t whole[8];
    store8(whole, h);
    for (int i = 0; i < 8; ++i) p[i] = half_to_float(whole[i]);
#endif
}

// The larger and the smaller; NaN where either is, as NumPy's maximum and minimum.
TORCHANE_INLINE vf larger(vf a, vf b) { return select(unordered(a), a, raw_max(a, b)); }
TORCHANE_INLINE vf smaller(vf a, vf b) { return select(unordered(a), a, raw_min(a, b)); }

// e^x in fp32, within 2 units in the last place, from -87.3 to 88; beyond it stays as it is there, which fp16 rounds to 0 and infinity.
// x = n ln 2 + r, |r| <= ln 2 / 2, e^r by a polynomial that interpolates at the Chebyshev points.
TORCHANE_INLINE vf bounded_exp(vf x) {
    const vf clamped = raw_max(set1(-87.3f), raw_min(set1(88.0f), x));  // keeps NaN: it is the second operand
    const vf n = nearest(clamped * set1(1.44269504089f));
    vf r = fma(n, set1(-0.693359375f), clamped);  // this part of ln 2 has 9 bits: the product is exact
    r = fma(n, set1(2.12194440054691e-4f), r);
    vf q = set1(0.00139261761199f);
    q = fma(q, r, set1(0.00836317307451f));
    q = fma(q, r, set1(0.0416665546621f));
    q = fma(q, r, set1(0.166665770256f));
    q = fma(q, r, set1(0.5f));
    return times_power_of_2(fma(r * r, q, r) + set1(1.0f), n);
}

// The same; 0 below -87.3 and infinity above 88.
TORCHANE_INLINE vf exp(vf x) {
    const vf above = select(less(set1(88.0f), x), set1(__builtin_inff()), bounded_exp(x));
    return select(less(x, set1(-87.3f)), set1(0.0f), above);
}

// 1 / x within 2 units in the last place, from 1 on and below infinity; from 2^126 on it may be 0. A division takes three times as long as 14 bits of it
// and a step of Newton's method.
TORCHANE_INLINE vf inverse(vf x) {
#if defined(__AVX512F__)
    const vf guess = _mm512_rcp14_ps(x);
    return guess * fma(set1(0.0f) - x, guess, set1(2.0f));
#else
    return set1(1.0f) / x;
#endif
}

// 1 / (1 + e^-x).
TORCHANE_INLINE vf sigmoid(vf x) { return inverse(set1(1.0f) + bounded_exp(set1(0.0f) - x)); }

// An odd polynomial up to 0.625, above it 1 - 2 / (e^2|x| + 1). Of -0 it is -0.
TORCHANE_INLINE vf tanh(vf x) {
    const vf size = abs(x), square = x * x;
    vf q = set1(-0.00609671416591f);
    q = fma(q, square, set1(0.0209971789991f));
    q = fma(q, square, set1(-0.0538509095785f));
    q = fma(q, square, set1(0.13332769737f));
    q = fma(q, square, set1(-0.333333289441f));
    const vf small = x * fma(square, q, set1(1.0f));
    const vf far = set1(1.0f) - set1(2.0f) * inverse(bounded_exp(size + size) + set1(1.0f));
    const vf large = select(less(x, set1(0.0f)), set1(0.0f) - far, far);
    return select(less(size, set1(0.625f)), small, large);
}

}  // namespace torchane::TORCHANE_ISA
