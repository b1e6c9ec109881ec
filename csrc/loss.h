// Cross-entropy of rows of logits and its gradient, fp32. Each row is computed alone: the same bits for any number of threads.
#pragma once

#include <cstdint>

namespace torchane {

// `logits` (rows, entries), dense. A row whose target is `ignored` has a loss of 0 and a gradient of zeros; other targets are in [0, entries).
struct Scores {
    const float* logits;
    const int64_t* targets;
    int64_t rows, entries, ignored;
};

// losses[r] = log sum_j e^logits[r][j] - logits[r][target], in nats. tops, sums: of each row the largest number, and the sum of e^(number - largest).
void token_losses(const Scores& scores, float* losses, float* tops, float* sums);

// grad[r] = (softmax(logits[r]) - 1 at the target) weights[r]; grad may be the logits themselves.
void token_gradients(const Scores& scores, const float* weights, const float* tops, const float* sums, float* grad);

}  // namespace torchane
