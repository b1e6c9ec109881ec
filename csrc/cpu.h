// What this processor can do, and which instruction set the kernels use.
#pragma once

#include <string>
#include <vector>

namespace torchane {

// The instruction sets that have kernels of their own, slowest first. `base` is what every machine of
// the architecture has: plain C++ on x86-64, NEON on arm64.
enum class Isa { base = 0, avx2 = 1, avx512 = 2, amx = 3 };

struct CpuFeatures {
    bool avx2 = false;    // AVX2, FMA and F16C, with the system's consent to save their registers
    bool avx512 = false;  // F, BW, DQ, VL
    bool bf16 = false;    // products of bf16 numbers: AVX512-BF16 beside the above, FEAT_BF16 on arm64
    bool amx = false;     // AMX tiles with bf16, granted by the kernel
};

const CpuFeatures& cpu_features();

// The best set that the processor has and this build holds, or the one forced by set_isa.
Isa active_isa();
std::vector<Isa> available_isas();
void set_isa(Isa isa);  // isa must be one of available_isas()

const char* isa_name(Isa isa);

}  // namespace torchane
