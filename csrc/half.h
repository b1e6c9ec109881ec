// One fp16 or bf16 number in plain C++: what the vector units do, where there is none.
// Everything is `static`, so that each instruction set compiles a copy of its own.
#pragma once

#include <cstdint>
#include <cstring>

namespace torchane {

using half_t = uint16_t;  // the bits of an IEEE binary16

static inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float half_to_float(half_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
    const uint32_t rest = h & 0x7fff;
    if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | ((rest & 0x3ff) ? 0x400000 | (rest & 0x3ff) << 13 : 0));
    if (rest >= 0x400) return bits_to_float(sign | ((rest << 13) + (112u << 23)));
    const float magnitude = static_cast<float>(rest) * 0x1p-24f;  // subnormal or zero
    return bits_to_float(sign | float_to_bits(magnitude));
}

// To nearest, ties to even; overflow gives infinity.
static inline half_t float_to_half(float value) {
    const uint32_t bits = float_to_bits(value);
    const half_t sign = static_cast<half_t>((bits >> 16) & 0x8000);
    uint32_t rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return static_cast<half_t>(sign | 0x7e00 | ((rest >> 13) & 0x3ff));
    if (rest >= 0x47800000) return static_cast<half_t>(sign | 0x7c00);  // 65536 and above
    if (rest < 0x38800000) {  // below the smallest normal: adding 2^-1 leaves units of 2^-24 in the last bits
        const uint32_t shifted = float_to_bits(bits_to_float(rest) + 0.5f);
        return static_cast<half_t>(sign | (shifted - 0x3f000000));
    }
    rest += 0xfff + ((rest >> 13) & 1);
    return static_cast<half_t>(sign | ((rest - (112u << 23)) >> 13));
}

static inline float bf16_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

}  // namespace torchane
