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

// d = exp(a - taken_at(i)), each rounded; taken_at(i, count) for the last ones; seen(numbers of a).
template <typename TakenAt, typename Seen>
TORCHANE_INLINE void powers(half_t* d, const half_t* a, int64_t n, TakenAt taken_at, Seen seen) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const vf x = load(a + i);
        seen(x);
        nearest_of<Exp>(d + i, through_half(x - taken_at(i, LANES)));
    }
    if (i == n) return;
    half_t last[LANES];
    const vf x = load_n(a + i, n - i);
    seen(x);
    nearest_of<Exp>(last, through_half(x - taken_at(i, n - i)));
    __builtin_memcpy(d + i, last, static_cast<size_t>(n - i) * sizeof(half_t));
}

// a = a * factor_at(i), each rounded.
template <typename FactorAt>
TORCHANE_INLINE void times(half_t* a, int64_t n, FactorAt factor_at) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(a + i, load(a + i) * factor_at(i, LANES));
    if (i < n) store_n(a + i, load_n(a + i, n - i) * factor_at(i, n - i), n - i);
}

// The row is in the nearest cache after the first loop: to sum as one goes saves nothing, and keeps registers from the exponential.
float sum_of_powers(half_t* d, const half_t* a, int64_t n, half_t top, float* least) {
    const vf taken = set1(half_to_float(top));
    vf low = set1(0.0f);
    powers(d, a, n, [&](int64_t, int64_t) { return taken; }, [&](vf x) { low = raw_min(low, x); });
    float lanes[LANES];
    store(lanes, low);
    *least = lanes[0];
    for (float lane : lanes) *least = Min::of(*least, lane);
    return fold<Sum>(n, Row{d});
}

void powers_times(half_t* a, const half_t* taken, const half_t* factor, int64_t n) {
    const auto at = [](const half_t* numbers) { return [=](int64_t i, int64_t count) { return count == LANES ? load(numbers + i) : load_n(numbers + i, count); }; };
    powers(a, a, n, at(taken), [](vf) {});
    times(a, n, at(factor));
}

void powers_times_one(half_t* d, const half_t* a, half_t taken, half_t factor, int64_t n) {
    const auto always = [](half_t number) { return [x = set1(half_to_float(number))](int64_t, int64_t) { return x; }; };
    powers(d, a, n, always(taken), [](vf) {});
    times(d, n, always(factor));
}

}  // namespace

void fill_vocabulary(Kernels& table) {
    table.sum_of_powers = sum_of_powers;
    table.powers_times = powers_times;
    table.powers_times_one = powers_times_one;
}

}  // namespace torchane::TORCHANE_ISA
