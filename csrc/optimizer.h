// The update of AdamW over dense fp32 arrays, which also rounds the new weights to fp16 where a program will read them.
#pragma once

#include <vector>

#include "kernels.h"
#include "staging.h"

namespace torchane {

// One parameter: its gradient is read, the others are changed. staged: where fp16(param) goes, or null; it may be where the gradient lies, since
// each number is read before it is written.
struct Updated {
    float* param;
    Numbers grad;
    float* exp_avg;
    float* exp_avg_sq;
    half_t* staged;
};

// The same bits for any number of threads and on every instruction set.
void adamw(const std::vector<Updated>& params, const AdamW& numbers);

}  // namespace torchane
