// engine_decode and engine_encode for a vector of numbers, in the vector types of GCC and Clang: the same code
// on every instruction set. A comparison gives -1 where it holds, 0 elsewhere.
#pragma once

#include "engine.h"
#include "isa/simd.h"

namespace torchane::TORCHANE_ISA {

typedef float vn __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));

TORCHANE_INLINE vn splat(float x) { return (vn)set1(x); }

TORCHANE_INLINE vn decode(vh h) {
    const vi wide = __builtin_convertvector(h, vi);
    vi rest = (wide & 0x7fff) << 13;
    const vi subnormal = rest < 0x00800000;
    rest += (112 << 23) + (subnormal & (1 << 23));
    const vn size = (vn)rest - (vn)(subnormal & (113 << 23));
    return (vn)((vi)size | (wide & 0x8000) << 16);
}

TORCHANE_INLINE vh encode(vn value) {
    const vi bits = (vi)value, rest = bits & 0x7fffffff;
    const vi is_small = rest < 0x38800000, is_large = rest >= 0x477ff000, is_nan = rest > 0x7f800000;
    const vi normal = (rest - (112 << 23) + 0x1000) >> 13;
    const vn units = (vn)(rest & is_small) * 0x1p24f;
    const vi whole = __builtin_convertvector(units, vi);
    const vi subnormal = whole - ((units - __builtin_convertvector(whole, vn)) >= 0.5f);
    vi found = (subnormal & is_small) | (normal & ~is_small);
    found = (0x7c00 & is_large) | (found & ~is_large);
    return __builtin_convertvector((found | ((bits >> 16) & 0x8000)) & ~is_nan, vh);
}

TORCHANE_INLINE vn decode(const half_t* p) {
    vh h;
    __builtin_memcpy(&h, p, sizeof h);
    return decode(h);
}

TORCHANE_INLINE void encode(half_t* p, vn value) {
    const vh h = encode(value);
    __builtin_memcpy(p, &h, sizeof h);
}

// The same for the first n < LANES numbers; the others are 0.
TORCHANE_INLINE vn decode_n(const half_t* p, int64_t n) {
    half_t whole[LANES] = {};
    __builtin_memcpy(whole, p, static_cast<size_t>(n) * sizeof(half_t));
    return decode(whole);
}

TORCHANE_INLINE void encode_n(half_t* p, vn value, int64_t n) {
    half_t whole[LANES];
    encode(whole, value);
    __builtin_memcpy(p, whole, static_cast<size_t>(n) * sizeof(half_t));
}

// What an fp16 register holds of it.
TORCHANE_INLINE vn rounded(vn value) { return decode(encode(value)); }

}  // namespace torchane::TORCHANE_ISA
