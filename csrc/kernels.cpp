#include "kernels.h"

#include "cpu.h"

namespace torchane {
namespace {

[[maybe_unused]] Kernels multiplying_by(const MatmulKernel& products) {
#if defined(TORCHANE_HAS_X86)
    Kernels mixed = avx512::table();
#else
    Kernels mixed = base::table();
#endif
    mixed.matmul = products;
    return mixed;
}

#if defined(TORCHANE_HAS_AMX)
const Kernels& with_amx() {
    static const Kernels table = multiplying_by(amx::matmul());
    return table;
}
#endif

#if defined(TORCHANE_HAS_BF16)
const Kernels& of_bf16() {
#if defined(TORCHANE_HAS_AMX)
    static const Kernels tiles = multiplying_by(amx::fast_matmul());
    if (active_isa() == Isa::amx) return tiles;
#endif
    static const Kernels vectors = multiplying_by(bf16::matmul());
    return vectors;
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
#if defined(TORCHANE_HAS_BF16)
    if (arithmetic == Arithmetic::fast && has_fast()) return of_bf16();
#endif
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

bool has_fast() {
#if defined(TORCHANE_HAS_BF16) && defined(TORCHANE_HAS_X86)
    return cpu_features().bf16 && active_isa() >= Isa::avx512;
#elif defined(TORCHANE_HAS_BF16)
    return cpu_features().bf16;
#else
    return false;
#endif
}

const MatmulKernel& finite_or_not_matmul() {
#if defined(TORCHANE_HAS_X86)
    if (active_isa() >= Isa::avx512) return avx512::table().matmul;
#endif
    return kernels().matmul;
}

}  // namespace torchane
