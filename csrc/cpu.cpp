#include "cpu.h"

#include <atomic>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace torchane {
namespace {

#if defined(__x86_64__)

// XCR0: the register files that the operating system saves at a context switch.
unsigned long long saved_registers() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<unsigned long long>(high) << 32) | low;
}

// Linux hands the 8 KiB of tile data to a process only on request, once, for all its threads.
// Source: Linux, Documentation/arch/x86/xstate.rst. Elsewhere tiles are left alone.
bool tiles_granted() {
#if defined(__linux__)
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

CpuFeatures detect() {
    CpuFeatures found;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
    if (!osxsave) return found;
    const unsigned long long saved = saved_registers();
    const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6, tiles = (saved & 0x60000) == 0x60000;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    found.avx2 = ymm && fma && f16c && (b & (1u << 5));
    const unsigned f_dq_bw_vl = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
    found.avx512 = found.avx2 && zmm && (b & f_dq_bw_vl) == f_dq_bw_vl;
    const unsigned bf16_tile = (1u << 22) | (1u << 24);
    unsigned leaf_1_a = 0, leaf_1_b = 0, leaf_1_c = 0, leaf_1_d = 0;
    if (a >= 1) __get_cpuid_count(7, 1, &leaf_1_a, &leaf_1_b, &leaf_1_c, &leaf_1_d);
    found.bf16 = found.avx512 && (leaf_1_a & (1u << 5));
    found.amx = found.bf16 && tiles && (d & bf16_tile) == bf16_tile && tiles_granted();
    return found;
}

#else

CpuFeatures detect() {
    CpuFeatures found;
#if defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long BF16 = 1ul << 14;  // HWCAP2_BF16; source: Linux, Documentation/arch/arm64/elf_hwcaps.rst
    found.bf16 = getauxval(AT_HWCAP2) & BF16;
#elif defined(__aarch64__) && defined(__APPLE__)
    int has = 0;
    size_t size = sizeof(has);
    found.bf16 = sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has != 0;
#endif
    return found;
}

#endif

std::atomic<int> forced{-1};

}  // namespace

const CpuFeatures& cpu_features() {
    static const CpuFeatures features = detect();
    return features;
}

std::vector<Isa> available_isas() {
    std::vector<Isa> isas{Isa::base};
#if defined(TORCHANE_HAS_X86)
    const CpuFeatures& cpu = cpu_features();
    if (cpu.avx2) isas.push_back(Isa::avx2);
    if (cpu.avx512) isas.push_back(Isa::avx512);
#if defined(TORCHANE_HAS_AMX)
    if (cpu.amx) isas.push_back(Isa::amx);
#endif
#endif
    return isas;
}

Isa active_isa() {
    static const Isa best = available_isas().back();
    const int isa = forced.load(std::memory_order_relaxed);
    return isa < 0 ? best : static_cast<Isa>(isa);
}

void set_isa(Isa isa) { forced.store(static_cast<int>(isa), std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
    constexpr const char* names[] = {"base", "avx2", "avx512", "amx"};
    return names[static_cast<int>(isa)];
}

}  // namespace torchane
