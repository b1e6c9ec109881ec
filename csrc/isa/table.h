// What the files of one instruction set contribute to its table.
#pragma once

#include "kernels.h"

namespace torchane::TORCHANE_ISA {

void fill_elementwise(Kernels& table);
void fill_reduce(Kernels& table);
void fill_softmax(Kernels& table);
void fill_staging(Kernels& table);
void fill_loss(Kernels& table);
void fill_vocabulary(Kernels& table);
void fill_matmul(Kernels& table);
void fill_few(Kernels& table);
void fill_optimizer(Kernels& table);
void fill_random(Kernels& table);
void fill_engine(Kernels& table);
void fill_engine_matmul(Kernels& table);

}  // namespace torchane::TORCHANE_ISA
