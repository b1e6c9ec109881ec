// Moves numbers without changing them: transpose, slice, concat, as one strided copy.
//
//     both sides have neighbours on the same axis      runs are copied whole
//     each side has neighbours on an axis of its own   blocks of 8 x 8 are exchanged in registers
//     else                                             number by number
#include <algorithm>
#include <cstring>

#include "pool.h"
#include "steps.h"
#include "transpose.h"

namespace torchane {
namespace {

inline void transpose_block(uint16_t* to, int64_t to_stride, const uint16_t* from, int64_t from_stride) {
    v8 r[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) r[i] = load8(from + i * from_stride);
    transpose_8x8(r);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) store8(to + i * to_stride, r[i]);
}

// Axes of a copy: those of size 1 dropped, sorted by the stride of the result, neighbours that both sides
// walk alike made one.
struct Axes {
    Sizes sizes, from, to;

    Axes(const Sizes& all, const Sizes& from_strides, const Sizes& to_strides) {
        std::vector<size_t> order;
        for (size_t axis = 0; axis < all.size(); ++axis)
            if (all[axis] != 1) order.push_back(axis);
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return to_strides[a] > to_strides[b]; });
        for (size_t axis : order) {
            const int64_t size = all[axis], f = from_strides[axis], t = to_strides[axis];
            if (!sizes.empty() && from.back() == f * size && to.back() == t * size) {
                sizes.back() *= size;
                from.back() = f;
                to.back() = t;
            } else {
                sizes.push_back(size);
                from.push_back(f);
                to.push_back(t);
            }
        }
        if (sizes.empty()) sizes = from = to = {1};
    }

    void drop(size_t axis) {
        for (Sizes* list : {&sizes, &from, &to}) list->erase(list->begin() + static_cast<int64_t>(axis));
    }
};

constexpr int64_t TASK = 16384;  // numbers that a task moves at least

void copy_runs(Axes axes, half_t* to, const half_t* from) {
    const int64_t run = axes.sizes.back();
    axes.drop(axes.sizes.size() - 1);
    const int64_t rows = product(axes.sizes);
    // Long runs are cut, so that a single one is shared too.
    const int64_t piece = std::min(run, TASK), pieces = (run + piece - 1) / piece;
    const int64_t per_task = std::max<int64_t>(1, TASK / piece), units = rows * pieces;
    parallel((units + per_task - 1) / per_task, [&](int64_t task, int) {
        Odometer<2> where(axes.sizes, {&axes.from, &axes.to});
        int64_t unit = task * per_task;
        where.seek(unit / pieces);
        for (const int64_t end = std::min(units, unit + per_task); unit < end; ++unit) {
            const int64_t begin = unit % pieces * piece, n = std::min(piece, run - begin);
            std::memcpy(to + where.offset[1] + begin, from + where.offset[0] + begin, static_cast<size_t>(n) * sizeof(half_t));
            if (unit % pieces == pieces - 1) where.next();
        }
    });
}

// `row` is the axis on which `from` has neighbours; the last axis is that of `to`.
void copy_transposed(Axes axes, size_t row, half_t* to, const half_t* from) {
    const int64_t columns = axes.sizes[row], to_stride = axes.to[row];
    const int64_t rows = axes.sizes.back(), from_stride = axes.from.back();
    axes.drop(axes.sizes.size() - 1);
    axes.drop(row);
    const int64_t outer = product(axes.sizes);
    const int64_t band = std::max<int64_t>(32, TASK / columns / 32 * 32), bands = (rows + band - 1) / band;
    const int64_t per_task = std::max<int64_t>(1, TASK / (rows * columns)), units = outer * bands;
    parallel((units + per_task - 1) / per_task, [&](int64_t task, int) {
        Odometer<2> where(axes.sizes, {&axes.from, &axes.to});
        for (int64_t unit = task * per_task, end = std::min(units, unit + per_task); unit < end; ++unit) {
            where.seek(unit / bands);
            const int64_t first = unit % bands * band;
            transpose_16(to + where.offset[1] + first, to_stride, from + where.offset[0] + first * from_stride, from_stride,
                         std::min(band, rows - first), columns);
        }
    });
}

void copy_numbers(Axes axes, half_t* to, const half_t* from) {
    const int64_t run = axes.sizes.back(), from_stride = axes.from.back(), to_stride = axes.to.back();
    axes.drop(axes.sizes.size() - 1);
    const int64_t rows = product(axes.sizes);
    const int64_t per_task = std::max<int64_t>(1, TASK / run);
    parallel((rows + per_task - 1) / per_task, [&](int64_t task, int) {
        Odometer<2> where(axes.sizes, {&axes.from, &axes.to});
        int64_t index = task * per_task;
        where.seek(index);
        for (const int64_t end = std::min(rows, index + per_task); index < end; ++index, where.next())
            for (int64_t i = 0; i < run; ++i) to[where.offset[1] + i * to_stride] = from[where.offset[0] + i * from_stride];
    });
}

}  // namespace

int64_t product(const Sizes& sizes) {
    int64_t result = 1;
    for (int64_t size : sizes) result *= size;
    return result;
}

// In squares of 64 x 64 numbers, whose lines on both sides stay in the first-level cache.
void transpose_16(uint16_t* to, int64_t to_stride, const uint16_t* from, int64_t from_stride, int64_t rows, int64_t columns) {
    constexpr int64_t SQUARE = 64;
    for (int64_t i0 = 0; i0 < rows; i0 += SQUARE)
        for (int64_t j0 = 0; j0 < columns; j0 += SQUARE) {
            const int64_t i1 = std::min(rows, i0 + SQUARE), j1 = std::min(columns, j0 + SQUARE);
            const int64_t i8 = i0 + (i1 - i0) / 8 * 8, j8 = j0 + (j1 - j0) / 8 * 8;
            for (int64_t j = j0; j < j8; j += 8)
                for (int64_t i = i0; i < i8; i += 8)
                    transpose_block(to + j * to_stride + i, to_stride, from + i * from_stride + j, from_stride);
            for (int64_t i = i0; i < i1; ++i)
                for (int64_t j = i < i8 ? j8 : j0; j < j1; ++j) to[j * to_stride + i] = from[i * from_stride + j];
        }
}

void Copy::run(const Run& run) const {
    const Axes axes(sizes, x_strides, out_strides);
    const half_t* from = run.at(x);
    half_t* to = run.at(out);
    if (axes.from.back() == 1 && axes.to.back() == 1) return copy_runs(axes, to, from);
    const auto row = std::find(axes.from.begin(), axes.from.end() - 1, 1);
    if (axes.to.back() == 1 && row != axes.from.end() - 1)
        return copy_transposed(axes, static_cast<size_t>(row - axes.from.begin()), to, from);
    copy_numbers(axes, to, from);
}

std::vector<Extent> Copy::extents() const {
    int64_t last_x = 0, last_out = 0;
    for (size_t axis = 0; axis < sizes.size(); ++axis) {
        last_x += (sizes[axis] - 1) * x_strides[axis];
        last_out += (sizes[axis] - 1) * out_strides[axis];
    }
    return {{x, last_x}, {out, last_out}};
}

}  // namespace torchane
