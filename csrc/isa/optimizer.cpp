// AdamW on a piece of a parameter. Each op is rounded to fp32 once and none is fused, so that NumPy's float32 gives the same bits.
// Source: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2. Reference: tests/native/test_optimizer.py.
#include "isa/table.h"
#include "isa/simd.h"

namespace torchane::TORCHANE_ISA {
namespace {

struct State {
    vf param, exp_avg, exp_avg_sq;
};

TORCHANE_INLINE State updated(State old, vf grad, const AdamW& numbers) {
    grad = grad * set1(numbers.grad_factor);
    const vf exp_avg = old.exp_avg + set1(numbers.keep_grad) * (grad - old.exp_avg);
    const vf exp_avg_sq = set1(numbers.beta2) * old.exp_avg_sq + set1(numbers.keep_square) * grad * grad;
    const vf size = sqrt(exp_avg_sq) * set1(numbers.root_factor) + set1(numbers.eps);
    return {set1(numbers.decay) * old.param - set1(numbers.step_size) * exp_avg / size, exp_avg, exp_avg_sq};
}

void adamw(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, half_t* staged, int64_t n, const AdamW& numbers) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const State now = updated({load(param + i), load(exp_avg + i), load(exp_avg_sq + i)}, load(grad + i), numbers);
        store(param + i, now.param);
        store(exp_avg + i, now.exp_avg);
        store(exp_avg_sq + i, now.exp_avg_sq);
        if (staged != nullptr) store(staged + i, now.param);
    }
    if (i == n) return;
    const int64_t rest = n - i;
    const State now = updated({load_n(param + i, rest), load_n(exp_avg + i, rest), load_n(exp_avg_sq + i, rest)}, load_n(grad + i, rest), numbers);
    store_n(param + i, now.param, rest);
    store_n(exp_avg + i, now.exp_avg, rest);
    store_n(exp_avg_sq + i, now.exp_avg_sq, rest);
    if (staged != nullptr) store_n(staged + i, now.param, rest);
}

}  // namespace

void fill_optimizer(Kernels& table) { table.adamw = adamw; }

}  // namespace torchane::TORCHANE_ISA
