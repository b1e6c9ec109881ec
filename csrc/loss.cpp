#include "loss.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "pool.h"

namespace torchane {
namespace {

// Calls work(row) for all rows, several of which make a task: some ten microseconds.
template <typename Work>
void each_row(const Scores& scores, Work work) {
    const int64_t per_task = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, scores.entries));
    parallel((scores.rows + per_task - 1) / per_task, [&](int64_t task, int) {
        for (int64_t row = task * per_task, end = std::min(scores.rows, row + per_task); row < end; ++row) work(row);
    });
}

}  // namespace

void token_losses(const Scores& scores, float* losses, float* tops, float* sums) {
    const Kernels& table = kernels();
    each_row(scores, [&](int64_t row) {
        const float* from = scores.logits + row * scores.entries;
        const int64_t target = scores.targets[row];
        losses[row] = tops[row] = 0;
        sums[row] = 1;
        if (target == scores.ignored) return;
        table.powers_of_row(from, scores.entries, tops + row, sums + row);
        losses[row] = tops[row] - from[target] + static_cast<float>(std::log(static_cast<double>(sums[row])));
    });
}

void token_gradients(const Scores& scores, const float* weights, const float* tops, const float* sums, float* grad) {
    const Kernels& table = kernels();
    each_row(scores, [&](int64_t row) {
        const int64_t target = scores.targets[row], n = scores.entries;
        float* to = grad + row * n;
        if (target == scores.ignored) return std::fill(to, to + n, 0.0f);
        table.softmax_times(to, scores.logits + row * n, n, tops[row], weights[row] / sums[row]);
        to[target] -= weights[row];
    });
}

}  // namespace torchane
