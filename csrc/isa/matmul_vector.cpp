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

constexpr int EIGHT = 8;
constexpr int64_t SLACK = 16;  // floats that may be written behind a panel

int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Neighbours in memory lie along k: blocks of eight rows by eight numbers are turned in registers. Of rows that are
// not there, the last one is read again.
template <int WIDTH>
void pack_along_k(float* panel, const half_t* from, int64_t stride, int64_t count, int64_t k) {
    constexpr int GROUPS = (WIDTH + EIGHT - 1) / EIGHT;
    const half_t* rows[GROUPS * EIGHT];
    for (int64_t i = 0; i < GROUPS * EIGHT; ++i) rows[i] = from + smaller_of(i, count - 1) * stride;
    int64_t p = 0;
    for (; p + EIGHT <= k; p += EIGHT)
        for (int group = GROUPS - 1; group >= 0; --group) {  // the last first: what it writes beyond WIDTH, the first replaces
            v8 block[EIGHT];
#pragma GCC unroll 8
            for (int i = 0; i < EIGHT; ++i) block[i] = load8(rows[group * EIGHT + i] + p);
            transpose_8x8(block);
            float* to = panel + p * WIDTH + group * EIGHT;
#pragma GCC unroll 8
            for (int j = 0; j < EIGHT; ++j) widen8(to + j * WIDTH, block[j]);
        }
    for (; p < k; ++p)
        for (int i = 0; i < WIDTH; ++i) {
            half_t one[LANES] = {rows[i][p]};
            float wide[LANES];
            store(wide, load(one));
            panel[p * WIDTH + i] = wide[0];
        }
}

// Neighbours in memory lie along the rows. Whole vectors are read as long as that stays within the operand.
template <int WIDTH>
void pack_along_rows(float* panel, const half_t* from, int64_t stride, int64_t count, int64_t k) {
    constexpr int64_t READ = (WIDTH + LANES - 1) / LANES * LANES;
    int64_t p = 0;
    for (const int64_t last = (k - 1) * stride + count; p < k && p * stride + READ <= last; ++p)
#pragma GCC unroll 4
        for (int64_t i = 0; i < READ; i += LANES) store(panel + p * WIDTH + i, load(from + p * stride + i));
    for (; p < k; ++p)
        for (int64_t i = 0; i < count; i += LANES) {
            const int64_t n = smaller_of(LANES, count - i);
            store_n(panel + p * WIDTH + i, load_n(from + p * stride + i, n), n);
        }
}

// panel[k][width] fp32.
template <int WIDTH>
bool pack(void* to, const half_t* from, int64_t stride, bool along_k, int64_t count, int64_t k) {
    if (along_k) pack_along_k<WIDTH>(static_cast<float*>(to), from, stride, count, k);
    else pack_along_rows<WIDTH>(static_cast<float*>(to), from, stride, count, k);
    return true;
}

// Adds to the sums of the first COUNT rows of a panel.
template <int COUNT>
TORCHANE_INLINE void add_rows(vf (&sums)[COUNT][VECTORS], const float* a, const float* b, int64_t k) {
    for (int64_t p = 0; p < k; ++p) {
        vf row[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) row[v] = load(b + p * COLUMNS + v * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < COUNT; ++i) {
            const vf x = set1(a[p * ROWS + i]);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) sums[i][v] = fma(x, row[v], sums[i][v]);
        }
    }
}

template <int COUNT>
void multiply_rows(const float* a, const float* b, int64_t k, float* c, bool add) {
    vf sums[COUNT][VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[i][v] = add ? load(c + i * COLUMNS + v * LANES) : set1(0.0f);
    add_rows<COUNT>(sums, a, b, k);
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) store(c + i * COLUMNS + v * LANES, sums[i][v]);
}

template <int COUNT>
void multiply_rows_into(const float* a, const float* b, int64_t k, half_t* to, int64_t stride, int64_t count) {
    vf sums[COUNT][VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[i][v] = set1(0.0f);
    add_rows<COUNT>(sums, a, b, k);
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i) {
        if (i >= count) break;
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) store(to + i * stride + v * LANES, sums[i][v]);
    }
}

constexpr int SMALLEST = ROWS > 4 ? 4 : ROWS, MIDDLE = ROWS > 8 ? 8 : ROWS;

// A few rows at the end of a matrix cost what they are, in steps of four.
void multiply(const void* panel_a, const void* panel_b, int64_t k, float* c, bool add, int64_t count) {
    const float* a = static_cast<const float*>(panel_a);
    const float* b = static_cast<const float*>(panel_b);
    if (count <= SMALLEST) return multiply_rows<SMALLEST>(a, b, k, c, add);
    if (count <= MIDDLE) return multiply_rows<MIDDLE>(a, b, k, c, add);
    multiply_rows<ROWS>(a, b, k, c, add);
}

void multiply_into(const void* panel_a, const void* panel_b, int64_t k, half_t* to, int64_t stride, int64_t count) {
    const float* a = static_cast<const float*>(panel_a);
    const float* b = static_cast<const float*>(panel_b);
    if (count <= SMALLEST) return multiply_rows_into<SMALLEST>(a, b, k, to, stride, count);
    if (count <= MIDDLE) return multiply_rows_into<MIDDLE>(a, b, k, to, stride, count);
    multiply_rows_into<ROWS>(a, b, k, to, stride, count);
}

void store_rows(half_t* to, int64_t stride, const float* c, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i, to += stride, c += COLUMNS) {
        int64_t j = 0;
        for (; j + LANES <= columns; j += LANES) store(to + j, load(c + j));
        if (j < columns) store_n(to + j, load_n(c + j, columns - j), columns - j);
    }
}

int64_t panel_a_bytes(int64_t k) { return (k * ROWS + SLACK) * static_cast<int64_t>(sizeof(float)); }
int64_t panel_b_bytes(int64_t k) { return (k * COLUMNS + SLACK) * static_cast<int64_t>(sizeof(float)); }
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
        .multiply_into = multiply_into,
        .store = store_rows,
        .begin = nothing,
        .end = nothing,
        .needs_finite = false,
        .piece = LANES == 8 ? 16 : 0,  // with sixteen lanes whole panels are faster
    };
}

}  // namespace torchane::TORCHANE_ISA
