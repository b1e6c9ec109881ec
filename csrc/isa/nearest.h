// Functions of one number whose fp32 result is not exact, rounded to the fp16 number that is nearest to the exact one: where the result lies so close to
// halfway between two fp16 numbers that its error decides, which is once in some 300 numbers, it is computed again in double.
// (Ziv 1991, doi 10.1145/114697.116813.)
#pragma once

#include <math.h>

#include "engine.h"
#include "isa/simd.h"

namespace torchane::TORCHANE_ISA {

// More than the relative error of tanh, sigmoid and silu in fp32, eight units in the last place, and of exp; tests look at every fp16 number.
constexpr float MARGIN = 0x1p-21f, MARGIN_OF_EXP = 0x1p-22f;

TORCHANE_INLINE half_t nearest_half(double value) { return float_to_half(to_odd(value)); }

// d holds y rounded from below, for the numbers x.
template <typename Op>
__attribute__((noinline)) static void settle(half_t* d, vf x, vf y) {
    float numbers[LANES];
    half_t above[LANES];
    store(numbers, x);
    store(above, y * set1(1.0f + Op::margin));
    for (int l = 0; l < LANES; ++l)
        if (d[l] != above[l]) d[l] = nearest_half(Op::exactly(numbers[l]));
}

template <typename Op>
TORCHANE_INLINE void nearest_of(half_t* d, vf x) {
    const vf y = Op::of(x);
    if (store_and_compare(d, y * set1(1.0f - Op::margin), y * set1(1.0f + Op::margin))) settle<Op>(d, x, y);
}

struct Exp {
    static constexpr float margin = MARGIN_OF_EXP;
    static vf of(vf x) { return bounded_exp(x); }
    static double exactly(double x) { return ::exp(x); }
};

}  // namespace torchane::TORCHANE_ISA
