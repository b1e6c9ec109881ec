#include "engine.h"

#include <cstring>
#include <memory>

#include "pool.h"
#include "steps.h"

namespace torchane {
namespace {

EngineTables& tables() {
    static const std::unique_ptr<EngineTables> held = std::make_unique<EngineTables>();
    return *held;
}

}  // namespace

const EngineTables& engine_tables() { return tables(); }

void set_engine_tables(const half_t* unary, const half_t* reciprocal) {
    std::memcpy(tables().unary, unary, sizeof tables().unary);
    std::memcpy(tables().reciprocal, reciprocal, sizeof tables().reciprocal);
}

// Sums of fp16 numbers are exact in double up to 2^12 of the largest, and in any case below 2^53 units of
// 2^-24, so their order does not matter.
void Reduce::run_exactly(const Run& run) const {
    constexpr int64_t WIDTH = 256;
    const half_t* from = run.at(x);
    half_t* to = run.at(out);
    const bool last_kept = kept.back();
    const int64_t inner = last_kept ? sizes.back() : 1;
    Sizes kept_sizes, kept_strides, gone_sizes, gone_strides;
    int64_t stride = product(sizes);
    for (size_t axis = 0; axis < sizes.size(); ++axis) {
        stride /= sizes[axis];
        if (last_kept && axis + 1 == sizes.size()) continue;
        (kept[axis] ? kept_sizes : gone_sizes).push_back(sizes[axis]);
        (kept[axis] ? kept_strides : gone_strides).push_back(stride);
    }
    const int64_t outer = product(kept_sizes), entries = product(gone_sizes), chunks = (inner + WIDTH - 1) / WIDTH;
    const auto better = [this](double a, double b) { return reduction == Reduction::max ? b > a : b < a; };
    const bool adds = reduction == Reduction::sum || reduction == Reduction::mean;
    parallel(outer * chunks, [&](int64_t task, int) {
        const int64_t column = task % chunks * WIDTH, o = task / chunks, n = inner - column < WIDTH ? inner - column : WIDTH;
        Odometer<1> where(kept_sizes, {&kept_strides}), entry(gone_sizes, {&gone_strides});
        where.seek(o);
        entry.seek(0);
        double own[WIDTH];
        for (int64_t e = 0; e < entries; ++e, entry.next()) {
            const half_t* row = from + where.offset[0] + entry.offset[0] + column;
            for (int64_t i = 0; i < n; ++i) {
                const double value = engine_decode(row[i]);
                if (adds) own[i] = e == 0 ? value + 0.0 : own[i] + value;
                else if (e == 0 || better(own[i], value)) own[i] = value;
            }
        }
        for (int64_t i = 0; i < n; ++i) {
            const double result = reduction == Reduction::mean ? own[i] / static_cast<double>(entries) : own[i];
            to[o * inner + column + i] = engine_encode(to_odd(result));
        }
    });
}

}  // namespace torchane
