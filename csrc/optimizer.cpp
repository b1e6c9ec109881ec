#include "optimizer.h"

#include <algorithm>

#include "pool.h"

namespace torchane {
namespace {

constexpr int64_t TASK = 32768;  // numbers: 128 KiB of each array

}  // namespace

void adamw(const std::vector<Updated>& params, const AdamW& numbers) {
    auto* const update = kernels().adamw;
    std::vector<int64_t> ends;
    for (const Updated& one : params) ends.push_back((ends.empty() ? 0 : ends.back()) + (one.grad.size() + TASK - 1) / TASK);
    parallel(ends.empty() ? 0 : ends.back(), [&](int64_t task, int) {
        const auto at = std::upper_bound(ends.begin(), ends.end(), task);
        const Updated& one = params[static_cast<size_t>(at - ends.begin())];
        const int64_t begin = (task - (at == ends.begin() ? 0 : at[-1])) * TASK, n = std::min(TASK, one.grad.size() - begin);
        half_t* staged = one.staged == nullptr ? nullptr : one.staged + begin;
        update(one.param + begin, floats_of(one.grad, begin, n), one.exp_avg + begin, one.exp_avg_sq + begin, staged, n, numbers);
    });
}

}  // namespace torchane
