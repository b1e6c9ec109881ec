// Rows of scores of a vocabulary, in fp16: exponentials that never reach memory. Each step is rounded to fp16 as the op alone would, and
// sums are folded as a row's are: the bits of exp, sub, mul and the sum of a row one after the other. Reference: these (tests/runtime/twin/test_vocabulary.py).
#include "isa/fold.h"
#include "isa/nearest.h"
#include "isa/table.h"

namespace torchane::TORCHANE_ISA {
namespace {

struct Row {
    const half_t* a;
    vf operator()(int64_t i) const { return load(a + i); }
    vf operator()(int64_t i, int64_t count) const { return first_of(load_n(a + i, count), count, Sum::start); }
};

// a = exp(a - taken_at(i)), each rounded; taken_at(i, count) for the last ones.
template <typename TakenAt>
TORCHANE_INLINE void powers(half_t* a, int64_t n, TakenAt taken_at) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) nearest_of<Exp>(a + i, through_half(load(a + i) - taken_at(i, LANES)));
    if (i == n) return;
    half_t last[LANES];
    nearest_of<Exp>(last, through_half(load_n(a + i, n - i) - taken_at(i, n - i)));
    __builtin_memcpy(a + i, last, static_cast<size_t>(n - i) * sizeof(half_t));
}

// The row is in the nearest cache after the first loop: to sum as one goes saves nothing, and keeps registers from the exponential.
float sum_of_powers(half_t* a, int64_t n, half_t top) {
    const vf taken = set1(half_to_float(top));
    powers(a, n, [&](int64_t, int64_t) { return taken; });
    return fold<Sum>(n, Row{a});
}

void powers_times(half_t* a, const half_t* taken, const half_t* factor, int64_t n) {
    powers(a, n, [&](int64_t i, int64_t count) { return count == LANES ? load(taken + i) : load_n(taken + i, count); });
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(a + i, load(a + i) * load(factor + i));
    if (i < n) store_n(a + i, load_n(a + i, n - i) * load_n(factor + i, n - i), n - i);
}

}  // namespace

void fill_vocabulary(Kernels& table) {
    table.sum_of_powers = sum_of_powers;
    table.powers_times = powers_times;
}

}  // namespace torchane::TORCHANE_ISA
