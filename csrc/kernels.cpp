#include "kernels.h"

#include "cpu.h"

namespace torchane {
namespace {

#if defined(TORCHANE_HAS_AMX)
const Kernels& with_amx() {
    static const Kernels table = [] {
        Kernels mixed = avx512::table();
        mixed.matmul = amx::matmul();
        return mixed;
    }();
    return table;
}
#endif

const Kernels& of_the_engine() {
#if defined(TORCHANE_HAS_X86)
    if (active_isa() >= Isa::avx512) return avx512::engine_table();
    if (active_isa() == Isa::avx2) return avx2::engine_table();
#endif
    return base::engine_table();
}

}  // namespace

const Kernels& kernels(Arithmetic arithmetic) {
    if (arithmetic == Arithmetic::engine) return of_the_engine();
    switch (active_isa()) {
#if defined(TORCHANE_HAS_AMX)
        case Isa::amx: return with_amx();
#endif
#if defined(TORCHANE_HAS_X86)
        case Isa::avx512: return avx512::table();
        case Isa::avx2: return avx2::table();
#endif
        default: return base::table();
    }
}

const MatmulKernel& finite_or_not_matmul() {
#if defined(TORCHANE_HAS_X86)
    if (active_isa() >= Isa::avx512) return avx512::table().matmul;
#endif
    return kernels().matmul;
}

}  // namespace torchane
