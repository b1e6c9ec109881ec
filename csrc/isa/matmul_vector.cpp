// Matrix products with fp32 vectors: C tiles of ROWS x (2 vectors), one fused multiply-add after another
// along k. A product of two fp16 numbers is exact in fp32, so fused or not, every instruction set gives
// the same bits. Reference: mil/ops/linear.py, matmul.
#include "isa/table.h"
#include "isa/simd.h"

namespace torchane::TORCHANE_ISA {
namespace {

// As many sums as the registers hold beside one column of A and one row of B.
#if defined(__AVX512F__)
constexpr int ROWS = 12;
#elif defined(__aarch64__)
constexpr int ROWS = 8;
#else
constexpr int ROWS = LANES == 8 ? 6 : 4;
#endif
constexpr int VECTORS = 2;
constexpr int COLUMNS = VECTORS * LANES;

// panel[k][width] fp32.
template <int WIDTH>
bool pack(void* to, const half_t* from, int64_t stride, bool along_k, int64_t count, int64_t k) {
    float* panel = static_cast<float*>(to);
    if (count < WIDTH) __builtin_memset(panel, 0, sizeof(float) * static_cast<size_t>(k * WIDTH));
    if (!along_k) {
        for (int64_t p = 0; p < k; ++p) {
            int64_t i = 0;
            for (; i + LANES <= count; i += LANES) store(panel + p * WIDTH + i, load(from + p * stride + i));
            if (i < count) store_n(panel + p * WIDTH + i, load_n(from + p * stride + i, count - i), count - i);
        }
        return true;
    }
    for (int64_t i = 0; i < count; ++i)
        for (int64_t p = 0; p < k; p += LANES) {
            const int64_t n = k - p < LANES ? k - p : LANES;
            float row[LANES];
            store(row, load_n(from + i * stride + p, n));
            for (int64_t l = 0; l < n; ++l) panel[(p + l) * WIDTH + i] = row[l];
        }
    return true;
}

void multiply(const void* panel_a, const void* panel_b, int64_t k, float* c, bool add) {
    const float* a = static_cast<const float*>(panel_a);
    const float* b = static_cast<const float*>(panel_b);
    vf sums[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[i][v] = add ? load(c + i * COLUMNS + v * LANES) : set1(0.0f);
    for (int64_t p = 0; p < k; ++p) {
        vf row[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) row[v] = load(b + p * COLUMNS + v * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) {
            const vf x = set1(a[p * ROWS + i]);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) sums[i][v] = fma(x, row[v], sums[i][v]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) store(c + i * COLUMNS + v * LANES, sums[i][v]);
}

void store_rows(half_t* to, int64_t stride, const float* c, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i, to += stride, c += COLUMNS) {
        int64_t j = 0;
        for (; j + LANES <= columns; j += LANES) store(to + j, load(c + j));
        if (j < columns) store_n(to + j, load_n(c + j, columns - j), columns - j);
    }
}

int64_t panel_a_bytes(int64_t k) { return k * ROWS * static_cast<int64_t>(sizeof(float)); }
int64_t panel_b_bytes(int64_t k) { return k * COLUMNS * static_cast<int64_t>(sizeof(float)); }
void nothing() {}

}  // namespace

void fill_matmul(Kernels& table) {
    table.matmul = {
        .rows = ROWS,
        .columns = COLUMNS,
        .depth = 1,
        .panel_a_bytes = panel_a_bytes,
        .panel_b_bytes = panel_b_bytes,
        .pack_a = pack<ROWS>,
        .pack_b = pack<COLUMNS>,
        .multiply = multiply,
        .store = store_rows,
        .begin = nothing,
        .end = nothing,
        .needs_finite = false,
    };
}

}  // namespace torchane::TORCHANE_ISA
