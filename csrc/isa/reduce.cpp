// Sums, maxima and minima: of a row, or of many columns at once. Sums are kept in fp32.
// Reference: mil/ops/reduce.py.
#include "isa/fold.h"
#include "isa/table.h"

namespace torchane::TORCHANE_ISA {
namespace {

// Overloads for fold: a whole vector of a row, and its last numbers.
template <typename Op>
struct Row {
    const half_t* a;
    vf operator()(int64_t i) const { return load(a + i); }
    vf operator()(int64_t i, int64_t count) const { return first_of(load_n(a + i, count), count, Op::start); }
};

template <typename Op>
float row(const half_t* a, int64_t n) {
    return fold<Op>(n, Row<Op>{a});
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
