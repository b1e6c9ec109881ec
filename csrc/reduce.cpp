// Reductions over any axes, and softmax down columns.
//
// If the last axis is reduced, a result is a sum over rows; if it is kept, rows are added to a row of
// results, 256 of them at a time into sums that are added at the end: a cut by the sizes alone, so the bits
// do not depend on the threads.
#include <algorithm>

#include "pool.h"
#include "steps.h"

namespace torchane {
namespace {

constexpr int64_t ENTRIES = 256;  // added one after the other before their sum joins the others
constexpr int64_t WIDTH = 256;    // columns that a task takes: 512 bytes of each row

float combine(Reduction reduction, float a, float b) {
    switch (reduction) {
        case Reduction::max: return a != a || a > b ? a : b;
        case Reduction::min: return a != a || a < b ? a : b;
        default: return a + b;
    }
}

float start(Reduction reduction) {
    constexpr float infinity = __builtin_inff();
    return reduction == Reduction::max ? -infinity : reduction == Reduction::min ? infinity : 0.0f;
}

}  // namespace

void Reduce::run(const Run& run) const {
    if (run.arithmetic == Arithmetic::engine) return run_exactly(run);
    const Kernels& table = kernels();
    const half_t* from = run.at(x);
    half_t* to = run.at(out);
    const bool last_kept = kept.back();
    const int64_t inner = sizes.back();
    Sizes kept_sizes, kept_strides, gone_sizes, gone_strides;
    for (size_t axis = 0, end = sizes.size() - 1; axis < end; ++axis) {
        const int64_t stride = product(Sizes(sizes.begin() + static_cast<int64_t>(axis) + 1, sizes.end()));
        (kept[axis] ? kept_sizes : gone_sizes).push_back(sizes[axis]);
        (kept[axis] ? kept_strides : gone_strides).push_back(stride);
    }
    const int64_t outer = product(kept_sizes), entries = product(gone_sizes);
    const float divisor = static_cast<float>(entries * (last_kept ? 1 : inner));
    const bool is_mean = reduction == Reduction::mean;
    const int code = static_cast<int>(is_mean ? Reduction::sum : reduction);

    if (!last_kept) {
        const int64_t per_task = std::max<int64_t>(1, 16384 / (entries * inner));
        parallel((outer + per_task - 1) / per_task, [&](int64_t task, int) {
            Odometer<1> where(kept_sizes, {&kept_strides}), entry(gone_sizes, {&gone_strides});
            for (int64_t o = task * per_task, end = std::min(outer, o + per_task); o < end; ++o) {
                where.seek(o);
                entry.seek(0);
                float sum = table.row[code](from + where.offset[0], inner);
                for (int64_t e = 1; e < entries; ++e) {
                    entry.next();
                    sum = combine(reduction, sum, table.row[code](from + where.offset[0] + entry.offset[0], inner));
                }
                if (is_mean) sum /= divisor;
                table.narrow(to + o, &sum, 1, 1.0f);
            }
        });
        return;
    }

    const int64_t chunks = (inner + WIDTH - 1) / WIDTH, parts = (entries + ENTRIES - 1) / ENTRIES;
    float* sums = run.shared.take<float>(static_cast<size_t>(outer * parts * inner) * sizeof(float));
    parallel(outer * parts * chunks, [&](int64_t task, int) {
        const int64_t chunk = task % chunks, part = task / chunks % parts, o = task / chunks / parts;
        const int64_t column = chunk * WIDTH, n = std::min(WIDTH, inner - column);
        Odometer<1> where(kept_sizes, {&kept_strides}), entry(gone_sizes, {&gone_strides});
        where.seek(o);
        entry.seek(part * ENTRIES);
        float* own = sums + (o * parts + part) * inner + column;
        std::fill(own, own + n, start(reduction));
        for (int64_t e = part * ENTRIES, end = std::min(entries, e + ENTRIES); e < end; ++e, entry.next())
            table.columns[code](own, from + where.offset[0] + entry.offset[0] + column, n);
    });
    parallel(outer * chunks, [&](int64_t task, int) {
        const int64_t chunk = task % chunks, o = task / chunks;
        const int64_t column = chunk * WIDTH, n = std::min(WIDTH, inner - column);
        float* first = sums + o * parts * inner + column;
        for (int64_t part = 1; part < parts; ++part)
            for (int64_t i = 0; i < n; ++i) first[i] = combine(reduction, first[i], first[part * inner + i]);
        if (is_mean)
            for (int64_t i = 0; i < n; ++i) first[i] /= divisor;
        table.narrow(to + o * inner + column, first, n, 1.0f);
    });
}

std::vector<Extent> Reduce::extents() const {
    int64_t results = 1;
    for (size_t axis = 0; axis < sizes.size(); ++axis) results *= kept[axis] ? sizes[axis] : 1;
    return {{x, product(sizes) - 1}, {out, results - 1}};
}

void SoftmaxColumns::run(const Run& run) const {
    constexpr int64_t COLUMNS = 64;
    const Kernels& table = kernels(run.arithmetic);
    const half_t* from = run.at(x);
    half_t* to = run.at(out);
    const int64_t chunks = (inner + COLUMNS - 1) / COLUMNS;
    parallel(outer * chunks, [&](int64_t task, int) {
        const int64_t column = task % chunks * COLUMNS, offset = task / chunks * entries * inner + column;
        table.softmax_columns(to + offset, from + offset, entries, inner, std::min(COLUMNS, inner - column));
    });
}

std::vector<Extent> SoftmaxColumns::extents() const {
    const int64_t last = outer * entries * inner - 1;
    return {{x, last}, {out, last}};
}

}  // namespace torchane
