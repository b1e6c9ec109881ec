#include "isa/table.h"

namespace torchane::TORCHANE_ISA {
namespace {

Kernels filled() {
    Kernels made{};
    fill_elementwise(made);
    fill_reduce(made);
    fill_softmax(made);
    fill_staging(made);
    fill_loss(made);
    fill_vocabulary(made);
    fill_matmul(made);
    fill_few(made);
    fill_optimizer(made);
    fill_random(made);
    return made;
}

Kernels engine_filled() {
    Kernels made{};
    fill_engine(made);
    fill_engine_matmul(made);
    return made;
}

}  // namespace

const Kernels& table() {
    static const Kernels made = filled();
    return made;
}

const Kernels& engine_table() {
    static const Kernels made = engine_filled();
    return made;
}

}  // namespace torchane::TORCHANE_ISA
