// Rows of numbers between the host's formats and fp16, and what is counted and summed about them.
#include "isa/table.h"
#include "isa/simd.h"

namespace torchane::TORCHANE_ISA {
namespace {

void narrow(half_t* d, const float* a, int64_t n, float scale) {
    const vf factor = set1(scale);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(d + i, load(a + i) * factor);
    if (i < n) store_n(d + i, load_n(a + i, n - i) * factor, n - i);
}

void narrow_half(half_t* d, const half_t* a, int64_t n, float scale) {
    if (scale == 1.0f) {
        __builtin_memcpy(d, a, static_cast<size_t>(n) * sizeof(half_t));
        return;
    }
    const vf factor = set1(scale);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(d + i, load(a + i) * factor);
    if (i < n) store_n(d + i, load_n(a + i, n - i) * factor, n - i);
}

void narrow_bf16(half_t* d, const uint16_t* a, int64_t n, float scale) {
    const vf factor = set1(scale);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(d + i, load_bf16(a + i) * factor);
    for (; i < n; ++i) d[i] = float_to_half(bf16_to_float(a[i]) * scale);
}

void widen(float* d, const half_t* a, int64_t n, float scale) {
    const vf factor = set1(scale);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(d + i, load(a + i) * factor);
    if (i < n) store_n(d + i, load_n(a + i, n - i) * factor, n - i);
}

// On the bits: without its sign an fp16 number compares like an integer. Plain loops that compilers
// turn into vectors of 16-bit integers; 2^14 numbers at a time, so that a 16-bit count cannot overflow.
void scan(const half_t* a, int64_t n, Scan* into) {
    constexpr int64_t BLOCK = 1 << 14;
    uint16_t largest = 0;
    for (int64_t begin = 0; begin < n; begin += BLOCK) {
        const int64_t end = n - begin < BLOCK ? n : begin + BLOCK;
        uint16_t zeros = 0, non_finite = 0, top = 0;
        for (int64_t i = begin; i < end; ++i) {
            const uint16_t size = a[i] & 0x7fff;
            const uint16_t ordered = size > 0x7c00 ? 0 : size;  // a NaN has no size
            zeros = static_cast<uint16_t>(zeros + (size == 0));
            non_finite = static_cast<uint16_t>(non_finite + (size >= 0x7c00));
            top = ordered > top ? ordered : top;
        }
        into->zeros += zeros;
        into->non_finite += non_finite;
        largest = top > largest ? top : largest;
    }
    const float max_abs = half_to_float(largest);
    into->max_abs = max_abs > into->max_abs ? max_abs : into->max_abs;
    into->count += n;
}

// Sixteen running sums in double, whatever the width of the vectors.
template <bool squares>
double sum(const float* a, int64_t n) {
    double running[16] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int r = 0; r < 16; ++r) {
            const double x = a[i + r];
            running[r] += squares ? x * x : x;
        }
    for (int r = 0; i < n; ++i, ++r) {
        const double x = a[i];
        running[r] += squares ? x * x : x;
    }
    for (int half = 8; half >= 1; half /= 2)
        for (int r = 0; r < half; ++r) running[r] += running[r + half];
    return running[0];
}

void scale(float* a, int64_t n, float factor) {
    const vf f = set1(factor);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(a + i, load(a + i) * f);
    for (; i < n; ++i) a[i] *= factor;
}

}  // namespace

void fill_staging(Kernels& table) {
    table.narrow = narrow;
    table.narrow_bf16 = narrow_bf16;
    table.narrow_half = narrow_half;
    table.widen = widen;
    table.scan = scan;
    table.sum_of_squares = sum<true>;
    table.sum = sum<false>;
    table.scale = scale;
}

}  // namespace torchane::TORCHANE_ISA
