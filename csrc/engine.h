// The engine's own arithmetic: what its kernels share. Rules and evidence: src/torchane/mil/engine.
//
//     decode     fp16 -> fp32, exponent field 31 a number like any other (0x7c00 is 65536)
//     encode     fp32 -> fp16, halves away from zero; NaN is 0
//     tables     every function of one fp16 number, for all 65,536 of them, computed by the NumPy rules
#pragma once

#include <cstdint>

#include "half.h"
#include "kernels.h"

namespace torchane {

struct EngineTables {
    half_t unary[static_cast<int>(Unary::count)][65536];
    half_t reciprocal[65536];  // of a softmax's sum
};

// Filled once, by set_engine_tables, before a program in this arithmetic runs.
const EngineTables& engine_tables();
void set_engine_tables(const half_t* unary, const half_t* reciprocal);

static inline float engine_decode(half_t h) {
    uint32_t rest = static_cast<uint32_t>(h & 0x7fff) << 13;
    const bool subnormal = rest < 0x00800000u;
    rest += (112u << 23) + (subnormal ? 1u << 23 : 0);
    const float size = bits_to_float(rest) - (subnormal ? bits_to_float(113u << 23) : 0.0f);
    return bits_to_float(float_to_bits(size) | static_cast<uint32_t>(h & 0x8000) << 16);
}

static inline half_t engine_encode(float value) {
    const uint32_t bits = float_to_bits(value), rest = bits & 0x7fffffff;
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t normal = (rest - (112u << 23) + 0x1000) >> 13;
    // Below 2^-14 in units of 2^-24: what is cut off is exact, so that a half is seen.
    const float units = bits_to_float(rest < 0x38800000u ? rest : 0) * 0x1p24f;
    const int32_t whole = static_cast<int32_t>(units);
    const uint32_t subnormal = static_cast<uint32_t>(whole + (units - static_cast<float>(whole) >= 0.5f ? 1 : 0));
    uint32_t found = rest < 0x38800000u ? subnormal : normal;
    found = rest >= 0x477ff000u ? 0x7c00 : found;  // 65520 and above
    return static_cast<half_t>(rest > 0x7f800000u ? 0 : (found | sign));
}

// To the nearest fp32 number, but to the odd one where it lies between two: a later rounding to fp16 sees
// that it was inexact.
static inline float to_odd(double value) {
    const float nearest = static_cast<float>(value);
    const double back = static_cast<double>(nearest);
    if (back == value || value != value) return nearest;
    uint32_t bits = float_to_bits(nearest);
    if ((back > value) == (value > 0)) --bits;  // towards zero
    return bits_to_float(bits | 1);
}

}  // namespace torchane
