// softmax: e^(x - max) / sum of e^(x - max), in fp32 throughout, rounded to fp16 once at the end.
// Reference: mil/ops/normalize.py.
#include "isa/fold.h"
#include "isa/table.h"

namespace torchane::TORCHANE_ISA {
namespace {

struct Row {
    const half_t* a;
    vf operator()(int64_t i) const { return load(a + i); }
    vf operator()(int64_t i, int64_t count) const { return first_of(load_n(a + i, count), count, Max::start); }
};

// e^(x - shift), kept in fp32 as it is summed.
struct Powers {
    const half_t* a;
    float* kept;
    vf shift;
    vf operator()(int64_t i) const {
        const vf power = exp(load(a + i) - shift);
        store(kept + i, power);
        return power;
    }
    vf operator()(int64_t i, int64_t count) const {
        const vf power = exp(load_n(a + i, count) - shift);
        store_n(kept + i, power, count);
        return first_of(power, count, Sum::start);
    }
};

void softmax_row(half_t* d, const half_t* a, int64_t n, float* scratch) {
    const vf shift = set1(fold<Max>(n, Row{a}));
    // A division per number would cost as much as e^; the product is two roundings of fp32 away at most.
    const vf inverse = set1(1.0f / fold<Sum>(n, Powers{a, scratch, shift}));
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(d + i, load(scratch + i) * inverse);
    if (i < n) store_n(d + i, load_n(scratch + i, n - i) * inverse, n - i);
}

// What mul, the sum of a row, sub and mul would give one after the other, each rounded.
struct Products {
    const half_t *g, *p;
    vf operator()(int64_t i) const { return through_half(load(g + i) * load(p + i)); }
    vf operator()(int64_t i, int64_t count) const { return first_of(through_half(load_n(g + i, count) * load_n(p + i, count)), count, Sum::start); }
};

void softmax_gradient_row(half_t* g, const half_t* p, int64_t n) {
    const vf sum = through_half(set1(fold<Sum>(n, Products{g, p})));
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(g + i, load(p + i) * through_half(load(g + i) - sum));
    if (i < n) store_n(g + i, load_n(p + i, n - i) * through_half(load_n(g + i, n - i) - sum), n - i);
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
    table.softmax_gradient_row = softmax_gradient_row;
}

}  // namespace torchane::TORCHANE_ISA
