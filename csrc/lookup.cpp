// Memory is what these take: rows are copied or added whole, as far as a thread has all columns of them.
#include "lookup.h"

#include <algorithm>
#include <cstring>

#include "panels.h"
#include "pool.h"

namespace torchane {
namespace {

constexpr int64_t TASK = 16384;  // numbers
constexpr int64_t LINE = 16;     // numbers

}  // namespace

bool are_rows(const int64_t* index, int64_t n, int64_t rows) {
    return std::all_of(index, index + n, [&](int64_t row) { return row >= 0 && row < rows; });
}

void take_rows(float* to, const float* table, const int64_t* index, int64_t n, int64_t columns) {
    const int64_t each = std::max<int64_t>(1, TASK / std::max<int64_t>(1, columns));
    parallel(ceil_div(n, each), [&](int64_t task, int) {
        for (int64_t i = task * each, end = std::min(n, i + each); i < end; ++i)
            std::memcpy(to + i * columns, table + index[i] * columns, static_cast<size_t>(columns) * sizeof(float));
    });
}

void sum_rows(float* to, int64_t rows, const float* from, const int64_t* index, int64_t n, int64_t columns, int64_t skipped) {
    const int64_t numbers = rows * columns;
    parallel(ceil_div(numbers, TASK), [&](int64_t task, int) {
        std::fill(to + task * TASK, to + std::min(numbers, (task + 1) * TASK), 0.0f);
    });
    // A thread takes some columns of all rows, whose order is that of the sums.
    const int64_t width = std::max(4 * LINE, round_up(ceil_div(columns, threads()), LINE));
    parallel(ceil_div(columns, width), [&](int64_t task, int) {
        const int64_t begin = task * width, count = std::min(width, columns - begin);
        for (int64_t i = 0; i < n; ++i) {
            if (index[i] == skipped) continue;
            float* sum = to + index[i] * columns + begin;
            const float* one = from + i * columns + begin;
            for (int64_t c = 0; c < count; ++c) sum[c] += one[c];
        }
    });
}

}  // namespace torchane
