// Sums, maxima and minima: of a row, or of many columns at once. Sums are kept in fp32.
// A row is dealt out over 64 running values whatever the width of the vectors, and these are folded
// 64 -> 32 -> ... -> 1, so every instruction set gives the same bits.
// Reference: mil/ops/reduce.py.
#include "isa/table.h"
#include "isa/simd.h"

namespace torchane::TORCHANE_ISA {
namespace {

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
float row(const half_t* a, int64_t n) {
    vf running[VECTORS];
    for (int v = 0; v < VECTORS; ++v) running[v] = set1(Op::start);
    int64_t i = 0;
    for (; i + RUNNING <= n; i += RUNNING)
        for (int v = 0; v < VECTORS; ++v) running[v] = Op::of(running[v], load(a + i + v * LANES));
    float folded[RUNNING];
    for (int v = 0; v < VECTORS; ++v) store(folded + v * LANES, running[v]);
    for (int r = 0; i < n; ++i, ++r) folded[r] = Op::of(folded[r], half_to_float(a[i]));
    for (int half = RUNNING / 2; half >= 1; half /= 2)
        for (int r = 0; r < half; ++r) folded[r] = Op::of(folded[r], folded[r + half]);
    return folded[0];
}

float mean(const half_t* a, int64_t n) { return row<Sum>(a, n) / static_cast<float>(n); }

template <typename Op>
void columns(float* acc, const half_t* a, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(acc + i, Op::of(load(acc + i), load(a + i)));
    if (i < n) store_n(acc + i, Op::of(load_n(acc + i, n - i), load_n(a + i, n - i)), n - i);
}

}  // namespace

void fill_reduce(Kernels& table) {
    table.row[static_cast<int>(Reduction::sum)] = row<Sum>;
    table.row[static_cast<int>(Reduction::mean)] = mean;
    table.row[static_cast<int>(Reduction::max)] = row<Max>;
    table.row[static_cast<int>(Reduction::min)] = row<Min>;
    table.columns[static_cast<int>(Reduction::sum)] = columns<Sum>;
    table.columns[static_cast<int>(Reduction::mean)] = columns<Sum>;
    table.columns[static_cast<int>(Reduction::max)] = columns<Max>;
    table.columns[static_cast<int>(Reduction::min)] = columns<Min>;
}

}  // namespace torchane::TORCHANE_ISA
