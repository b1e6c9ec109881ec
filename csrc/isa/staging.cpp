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

void narrow_bool(half_t* d, const uint8_t* a, int64_t n, float scale) {
    const half_t one = float_to_half(scale);
    for (int64_t i = 0; i < n; ++i) d[i] = a[i] != 0 ? one : half_t{0};
}

void widen(float* d, const half_t* a, int64_t n, float scale) {
    const vf factor = set1(scale);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(d + i, load(a + i) * factor);
    if (i < n) store_n(d + i, load_n(a + i, n - i) * factor, n - i);
}

// On the bits: without its sign an fp16 number compares like a signed integer. A comparison gives -1 where
// it holds, so counts are what is subtracted; 2^14 vectors at a time, lest a 16-bit count overflow.
constexpr int WORDS = 2 * LANES;
typedef int16_t words __attribute__((vector_size(2 * WORDS)));

void scan(const half_t* a, int64_t n, Scan* into) {
    constexpr int64_t BLOCK = WORDS << 14;
    constexpr int16_t INFINITE = 0x7c00, SIZE = 0x7fff;
    int16_t largest = 0;
    int64_t i = 0;
    while (n - i >= WORDS) {
        words zeros{}, non_finite{}, top{};
        for (const int64_t end = n - i < BLOCK ? n : i + BLOCK; i + WORDS <= end; i += WORDS) {
            words x;
            __builtin_memcpy(&x, a + i, sizeof x);
            x &= SIZE;
            zeros -= x == 0;
            non_finite -= x >= INFINITE;
            x &= x <= INFINITE;  // a NaN has no size
            const words above = x > top;
            top = (x & above) | (top & ~above);
        }
        for (int w = 0; w < WORDS; ++w) {
            into->zeros += zeros[w];
            into->non_finite += non_finite[w];
            largest = top[w] > largest ? top[w] : largest;
        }
    }
    for (; i < n; ++i) {
        const int16_t x = static_cast<int16_t>(a[i] & SIZE);
        into->zeros += x == 0;
        into->non_finite += x >= INFINITE;
        if (x <= INFINITE && x > largest) largest = x;
    }
    const float max_abs = half_to_float(static_cast<half_t>(largest));
    into->max_abs = max_abs > into->max_abs ? max_abs : into->max_abs;
    into->count += n;
}

// Sixteen running sums in double, whatever the width of the vectors.
struct Sums {
    double running[16] = {};

    // n is a multiple of 16, but for the last call.
    template <bool squares>
    void add(const float* a, int64_t n) {
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
    }

    double total() {
        for (int half = 8; half >= 1; half /= 2)
            for (int r = 0; r < half; ++r) running[r] += running[r + half];
        return running[0];
    }
};

template <bool squares>
double sum(const float* a, int64_t n) {
    Sums sums;
    sums.add<squares>(a, n);
    return sums.total();
}

double sum_of_squares_half(const half_t* a, int64_t n, float scale) {
    constexpr int64_t BLOCK = 1024;  // widened in the nearest cache
    float widened[BLOCK];
    Sums sums;
    for (int64_t begin = 0; begin < n; begin += BLOCK) {
        const int64_t count = n - begin < BLOCK ? n - begin : BLOCK;
        widen(widened, a + begin, count, scale);
        sums.add<true>(widened, count);
    }
    return sums.total();
}

void scale(float* a, int64_t n, float factor) {
    const vf f = set1(factor);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(a + i, load(a + i) * f);
    for (; i < n; ++i) a[i] *= factor;
}

float largest(const float* a, int64_t n) {
    vf top[4] = {set1(0.0f), set1(0.0f), set1(0.0f), set1(0.0f)};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int j = 0; j < 4; ++j) top[j] = larger(top[j], abs(load(a + i + j * LANES)));
    for (; i < n; i += LANES) top[0] = larger(top[0], abs(load_n(a + i, n - i < LANES ? n - i : LANES)));
    float all[LANES];
    store(all, larger(larger(top[0], top[1]), larger(top[2], top[3])));
    float found = 0.0f;
    for (int l = 0; l < LANES; ++l) found = found != found || found > all[l] ? found : all[l];
    return found;
}

}  // namespace

void fill_staging(Kernels& table) {
    table.narrow = narrow;
    table.narrow_bf16 = narrow_bf16;
    table.narrow_half = narrow_half;
    table.narrow_bool = narrow_bool;
    table.widen = widen;
    table.scan = scan;
    table.sum_of_squares = sum<true>;
    table.sum_of_squares_half = sum_of_squares_half;
    table.sum = sum<false>;
    table.scale = scale;
    table.largest = largest;
}

}  // namespace torchane::TORCHANE_ISA
