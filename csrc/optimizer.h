// The update of AdamW over dense fp32 arrays, which also rounds the new weights to fp16 where a program will read them.
#pragma once

#include <vector>

#include "kernels.h"

namespace torchane {

// One parameter: grad is read, the others are changed. staged: where fp16(param) goes, or null; all hold `size` numbers.
struct Updated {
    float* param;
    const float* grad;
    float* exp_avg;
    float* exp_avg_sq;
    half_t* staged;
    int64_t size;
};

// The same bits for any number of threads and on every instruction set.
void adamw(const std::vector<Updated>& params, const AdamW& numbers);

}  // namespace torchane
