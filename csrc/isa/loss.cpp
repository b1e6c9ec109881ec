// Rows of logits in fp32: what a cross-entropy and its gradient need of e^. Reference: tests/native/test_loss.py.
#include "isa/fold.h"
#include "isa/table.h"

namespace torchane::TORCHANE_ISA {
namespace {

struct Row {
    const float* a;
    vf operator()(int64_t i) const { return load(a + i); }
    vf operator()(int64_t i, int64_t count) const { return first_of(load_n(a + i, count), count, Max::start); }
};

struct Powers {
    const float* a;
    vf top;
    vf operator()(int64_t i) const { return exp(load(a + i) - top); }
    vf operator()(int64_t i, int64_t count) const { return first_of(exp(load_n(a + i, count) - top), count, Sum::start); }
};

void powers_of_row(const float* a, int64_t n, float* top, float* sum) {
    *top = fold<Max>(n, Row{a});
    *sum = fold<Sum>(n, Powers{a, set1(*top)});
}

void softmax_times(float* d, const float* a, int64_t n, float top, float factor) {
    const vf shift = set1(top), times = set1(factor);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(d + i, exp(load(a + i) - shift) * times);
    if (i < n) store_n(d + i, exp(load_n(a + i, n - i) - shift) * times, n - i);
}

}  // namespace

void fill_loss(Kernels& table) {
    table.powers_of_row = powers_of_row;
    table.softmax_times = softmax_times;
}

}  // namespace torchane::TORCHANE_ISA
