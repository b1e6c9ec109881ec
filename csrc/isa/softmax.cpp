// softmax: e^(x - max) / sum of e^(x - max), in fp32 throughout, rounded to fp16 once at the end.
// Reference: mil/ops/normalize.py.
#include "isa/table.h"
#include "isa/simd.h"

namespace torchane::TORCHANE_ISA {
namespace {

constexpr int RUNNING = 64;
constexpr int VECTORS = RUNNING / LANES;

void softmax_row(half_t* d, const half_t* a, int64_t n, float* scratch) {
    vf top = set1(-__builtin_inff());
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) top = larger(top, load(a + i));
    float tops[LANES];
    store(tops, top);
    float greatest = -__builtin_inff();
    for (int l = 0; l < LANES; ++l)
        if (!(tops[l] <= greatest)) greatest = tops[l];
    for (int64_t j = i; j < n; ++j) {
        const float x = half_to_float(a[j]);
        if (!(x <= greatest)) greatest = x;
    }

    const vf shift = set1(greatest);
    vf running[VECTORS];
    for (int v = 0; v < VECTORS; ++v) running[v] = set1(0.0f);
    i = 0;
    for (; i + RUNNING <= n; i += RUNNING)
        for (int v = 0; v < VECTORS; ++v) {
            const vf e = exp(load(a + i + v * LANES) - shift);
            store(scratch + i + v * LANES, e);
            running[v] = running[v] + e;
        }
    float folded[RUNNING];
    for (int v = 0; v < VECTORS; ++v) store(folded + v * LANES, running[v]);
    for (int r = 0; i < n; i += LANES, r += LANES) {
        const int64_t count = n - i < LANES ? n - i : LANES;
        float e[LANES];
        store(e, exp(load_n(a + i, count) - shift));
        for (int64_t l = 0; l < count; ++l) {
            scratch[i + l] = e[l];
            folded[r + l] += e[l];
        }
    }
    for (int half = RUNNING / 2; half >= 1; half /= 2)
        for (int r = 0; r < half; ++r) folded[r] += folded[r + half];

    // A division per number would cost as much as e^; the product is two roundings of fp32 away at most.
    const vf inverse = set1(1.0f / folded[0]);
    for (i = 0; i + LANES <= n; i += LANES) store(d + i, load(scratch + i) * inverse);
    if (i < n) store_n(d + i, load_n(scratch + i, n - i) * inverse, n - i);
}

// e^ is computed twice rather than kept: the columns of a vocabulary would not fit a cache.
void softmax_vector(half_t* d, const half_t* a, int64_t entries, int64_t stride, int64_t n) {
    vf top = set1(-__builtin_inff()), sum = set1(0.0f);
    for (int64_t e = 0; e < entries; ++e) top = larger(top, load_n(a + e * stride, n));
    for (int64_t e = 0; e < entries; ++e) sum = sum + exp(load_n(a + e * stride, n) - top);
    for (int64_t e = 0; e < entries; ++e) store_n(d + e * stride, exp(load_n(a + e * stride, n) - top) / sum, n);
}

void softmax_columns(half_t* d, const half_t* a, int64_t entries, int64_t stride, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES)
        softmax_vector(d + i, a + i, entries, stride, n - i < LANES ? n - i : LANES);
}

}  // namespace

void fill_softmax(Kernels& table) {
    table.softmax_row = softmax_row;
    table.softmax_columns = softmax_columns;
}

}  // namespace torchane::TORCHANE_ISA
