// Folding a row to one number: it is dealt out over 64 running values whatever the width of the vectors, and
// these are folded 64 -> 32 -> ... -> 1, so every instruction set gives the same bits.
#pragma once

#include "isa/simd.h"

namespace torchane::TORCHANE_ISA {

constexpr int RUNNING = 64;
constexpr int VECTORS = RUNNING / LANES;

struct Sum {
    static constexpr float start = 0.0f;
    static vf of(vf a, vf b) { return a + b; }
    static float of(float a, float b) { return a + b; }
};
struct Max {
    static constexpr float start = -__builtin_inff();
    static vf of(vf a, vf b) { return larger(a, b); }
    static float of(float a, float b) { return a != a || a > b ? a : b; }
};
struct Min {
    static constexpr float start = __builtin_inff();
    static vf of(vf a, vf b) { return smaller(a, b); }
    static float of(float a, float b) { return a != a || a < b ? a : b; }
};

template <typename Op>
TORCHANE_INLINE float folded(vf (&running)[VECTORS]) {
    for (int half = VECTORS / 2; half >= 1; half /= 2)
        for (int v = 0; v < half; ++v) running[v] = Op::of(running[v], running[v + half]);
#if defined(__AVX512F__)
    vf all = running[0];
    all = Op::of(all, _mm512_shuffle_f32x4(all, all, 0x4e));  // lanes 8 on meet the first 8
    all = Op::of(all, _mm512_shuffle_f32x4(all, all, 0xb1));
    all = Op::of(all, _mm512_permute_ps(all, 0x4e));
    all = Op::of(all, _mm512_permute_ps(all, 0xb1));
    return _mm512_cvtss_f32(all);
#else
    float lanes[LANES];
    store(lanes, running[0]);
    for (int half = LANES / 2; half >= 1; half /= 2)
        for (int l = 0; l < half; ++l) lanes[l] = Op::of(lanes[l], lanes[l + half]);
    return lanes[0];
#endif
}

// Folds n values; vector_at(i) gives LANES of them from i on, vector_at(i, count) the last count < LANES,
// the other lanes being Op::start.
template <typename Op, typename VectorAt>
TORCHANE_INLINE float fold(int64_t n, VectorAt vector_at) {
    vf running[VECTORS];
    for (int v = 0; v < VECTORS; ++v) running[v] = set1(Op::start);
    int64_t i = 0;
    for (; i + RUNNING <= n; i += RUNNING)
        for (int v = 0; v < VECTORS; ++v) running[v] = Op::of(running[v], vector_at(i + v * LANES));
    for (int v = 0; i < n; ++v, i += LANES)
        running[v] = Op::of(running[v], i + LANES <= n ? vector_at(i) : vector_at(i, n - i));
    return folded<Op>(running);
}

// LANES values of which the first `count` are v's and the others `rest`.
TORCHANE_INLINE vf first_of(vf v, int64_t count, float rest) {
    float lanes[LANES];
    store(lanes, v);
    for (int64_t l = count; l < LANES; ++l) lanes[l] = rest;
    return load(lanes);
}

}  // namespace torchane::TORCHANE_ISA
