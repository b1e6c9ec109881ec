// A product with a matrix that has one power of two, from 1 on, in a row at most: rows or columns of the other operand, moved.
//
//     every number of the operand is finite      pieces of rows are copied, times their factor
//     else                                       the product says where 0 times infinity comes out
//
// A sum of one number and zeros is that number, but for -0, which becomes +0: so 0 is added to each. Reference: `product`.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "pool.h"
#include "steps.h"

namespace torchane {
namespace {

constexpr int64_t TASK = 16384;  // numbers that a task moves at least
constexpr half_t ONE = 0x3c00, MINUS_ONE = 0xbc00, INFINITE = 0x7c00, SIZE = 0x7fff;

bool is_finite(const half_t* from, int64_t n) {
    uint16_t worst = 0;
    for (int64_t i = 0; i < n; ++i) worst = std::max<uint16_t>(worst, from[i] & SIZE);
    return worst < INFINITE;
}

}  // namespace

void Selection::run(const Run& run) const {
    const half_t* from = run.at(is_left ? product.y : product.x);
    const int64_t from_size = is_left ? product.k * product.n : product.m * product.k, count = torchane::product(product.batch);
    const Sizes& strides = is_left ? product.y_strides : product.x_strides;
    const auto operand = [&](int64_t index) {
        Odometer<1> position(product.batch, {&strides});
        position.seek(index);
        return from + position.offset[0];
    };
    std::atomic<bool> finite{true};
    const int64_t looked = ceil_div(from_size, TASK);
    parallel(count * looked, [&](int64_t task, int) {
        const int64_t begin = task % looked * TASK;
        if (!is_finite(operand(task / looked) + begin, std::min(TASK, from_size - begin))) finite.store(false, std::memory_order_relaxed);
    });
    if (!finite.load()) return product.run(run);
    half_t* out = run.at(product.out);
    const int64_t rows = is_left ? product.m : product.m * count;
    if (is_left) {
        // A piece is rows of one matrix: neighbours on both sides.
        const int64_t per_task = std::max<int64_t>(1, TASK / std::max<int64_t>(1, product.n)), tasks = ceil_div(rows, per_task);
        parallel(count * tasks, [&](int64_t task, int) {
            const int64_t index = task / tasks, begin = task % tasks * per_task, end = std::min(rows, begin + per_task);
            const half_t* x = operand(index);
            for (const Piece& piece : pieces) {
                const int64_t first = std::max(begin, piece.out), last = std::min(end, piece.out + piece.count);
                if (first < last)
                    move(out + (index * rows + first) * product.n, x + (piece.in + first - piece.out) * product.n, (last - first) * product.n, piece.factor);
            }
        });
        return;
    }
    const int64_t per_task = std::max<int64_t>(1, TASK / std::max<int64_t>(1, product.n));
    parallel(ceil_div(rows, per_task), [&](int64_t task, int) {
        for (int64_t row = task * per_task, end = std::min(rows, row + per_task); row < end; ++row) {
            const half_t* x = operand(row / product.m) + row % product.m * product.k;
            for (const Piece& piece : pieces) move(out + row * product.n + piece.out, x + piece.in, piece.count, piece.factor);
        }
    });
}

void Selection::move(half_t* to, const half_t* from, int64_t n, half_t factor) {
    static constexpr half_t zero = 0;
    const auto& binary = kernels().binary;
    const auto with = [&](Binary op, Form form) { return binary[static_cast<int>(op)][static_cast<int>(form)]; };
    if (factor == 0) {
        std::memset(to, 0, static_cast<size_t>(n) * sizeof(half_t));
    } else if (factor == MINUS_ONE) {
        with(Binary::sub, Form::scalar_vector)(to, &zero, from, n);
    } else if (factor == ONE) {
        with(Binary::add, Form::vector_scalar)(to, from, &zero, n);
    } else {
        with(Binary::mul, Form::vector_scalar)(to, from, &factor, n);
        with(Binary::add, Form::vector_scalar)(to, to, &zero, n);
    }
}

std::vector<Extent> Selection::extents() const { return product.extents(); }

void Selection::check() const {
    const int64_t outer = is_left ? product.m : product.n;
    int64_t next = 0;
    for (const Piece& piece : pieces) {
        if (piece.count < 1 || piece.out != next || piece.in < 0 || (piece.factor != 0 && piece.in + piece.count > product.k))
            throw std::invalid_argument("select: pieces that do not fit the product");
        next += piece.count;
    }
    if (next != outer) throw std::invalid_argument("select: pieces that do not make up the result");
    if (is_left ? product.transpose_y : product.transpose_x) throw std::invalid_argument("select: the other operand lies turned");
    for (int64_t stride : is_left ? product.x_strides : product.y_strides)
        if (stride != 0) throw std::invalid_argument("select: a matrix for each of the batch");
}

}  // namespace torchane
