// Matrix products of numbers rounded to bf16 on arm64: C tiles of 8 x 8, four numbers of k a step, sums in fp32.
//
//     BFMMLA    C (2, 2) += A (2, 4) B (4, 2): rows of A and columns of B lie in pairs, four neighbours in k of each
//
// For processors with FEAT_BF16 (Apple M2 and later); the others never come here (has_fast). Sums by fours are rounded as the processor
// does. Source: Arm Architecture Reference Manual, DDI 0487, BFMMLA. Reference: mil/fast.py.
#include "kernels.h"

#if defined(__aarch64__)

// Only what is in this file may use the instructions.
#if defined(__clang__)
#include <arm_neon.h>
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+bf16")
#include <arm_neon.h>
#endif

namespace torchane::bf16 {
namespace {

constexpr int SIDE = 8;   // rows of A and columns of B in a panel: four pairs
constexpr int DEPTH = 4;  // numbers of k in one instruction
constexpr int PAIRS = SIDE / 2;
constexpr int64_t STEP = SIDE * DEPTH;  // a panel's numbers per DEPTH

// Four neighbours in k of two rows, or eight of one, rounded to nearest even.
bfloat16x8_t rounded(float16x8_t numbers) {
    return vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(vcvt_f32_f16(vget_low_f16(numbers))), vcvt_high_f32_f16(numbers));
}

// Up to 8 numbers, zeros behind them.
float16x8_t read(const half_t* from, int64_t count) {
    half_t some[8] = {};
    if (count >= 8) return vreinterpretq_f16_u16(vld1q_u16(from));
    for (int64_t i = 0; i < count; ++i) some[i] = from[i];
    return vreinterpretq_f16_u16(vld1q_u16(some));
}

// Eight rows by four numbers of k -> pairs of rows.
void pack_along_k(bfloat16_t* panel, const half_t* from, int64_t stride, int64_t count, int64_t k) {
    for (int64_t p = 0; p < k; p += DEPTH, panel += STEP)
        for (int pair = 0; pair < PAIRS; ++pair) {
            const float16x8_t zeros = read(from, 0);
            const int64_t n = k - p < DEPTH ? k - p : DEPTH;
            const float16x8_t first = 2 * pair < count ? read(from + 2 * pair * stride + p, n) : zeros;
            const float16x8_t second = 2 * pair + 1 < count ? read(from + (2 * pair + 1) * stride + p, n) : zeros;
            vst1q_bf16(panel + pair * 8, rounded(vcombine_f16(vget_low_f16(first), vget_low_f16(second))));
        }
}

void pack_along_rows(bfloat16_t* panel, const half_t* from, int64_t stride, int64_t count, int64_t k) {
    for (int64_t p = 0; p < k; p += DEPTH, panel += STEP) {
        uint16x8_t rows[DEPTH];  // eight rows each, at one k
        for (int i = 0; i < DEPTH; ++i)
            rows[i] = vreinterpretq_u16_bf16(rounded(p + i < k ? read(from + (p + i) * stride, count) : read(from, 0)));
        const uint16x8_t low_01 = vzip1q_u16(rows[0], rows[1]), high_01 = vzip2q_u16(rows[0], rows[1]);
        const uint16x8_t low_23 = vzip1q_u16(rows[2], rows[3]), high_23 = vzip2q_u16(rows[2], rows[3]);
        uint16_t* to = reinterpret_cast<uint16_t*>(panel);
        const auto together = [](uint16x8_t a, uint16x8_t b, bool upper) {
            const uint32x4_t x = vreinterpretq_u32_u16(a), y = vreinterpretq_u32_u16(b);
            return vreinterpretq_u16_u32(upper ? vzip2q_u32(x, y) : vzip1q_u32(x, y));
        };
        vst1q_u16(to, together(low_01, low_23, false));
        vst1q_u16(to + 8, together(low_01, low_23, true));
        vst1q_u16(to + 16, together(high_01, high_23, false));
        vst1q_u16(to + 24, together(high_01, high_23, true));
    }
}

bool pack(void* panel, const half_t* from, int64_t stride, bool along_k, int64_t count, int64_t k) {
    if (along_k) pack_along_k(static_cast<bfloat16_t*>(panel), from, stride, count, k);
    else pack_along_rows(static_cast<bfloat16_t*>(panel), from, stride, count, k);
    return true;
}

void multiply(const void* panel_a, const void* panel_b, int64_t k, float* c, bool add, int64_t) {
    const bfloat16_t* a = static_cast<const bfloat16_t*>(panel_a);
    const bfloat16_t* b = static_cast<const bfloat16_t*>(panel_b);
    float32x4_t sums[PAIRS][PAIRS];  // (2, 2) of C each, row by row
    for (int i = 0; i < PAIRS; ++i)
        for (int j = 0; j < PAIRS; ++j)
            sums[i][j] = add ? vcombine_f32(vld1_f32(c + 2 * i * SIDE + 2 * j), vld1_f32(c + (2 * i + 1) * SIDE + 2 * j)) : vdupq_n_f32(0.0f);
    for (int64_t p = 0; p < k; p += DEPTH, a += STEP, b += STEP) {
        bfloat16x8_t columns[PAIRS];
#pragma GCC unroll 4
        for (int j = 0; j < PAIRS; ++j) columns[j] = vld1q_bf16(b + j * 8);
#pragma GCC unroll 4
        for (int i = 0; i < PAIRS; ++i) {
            const bfloat16x8_t rows = vld1q_bf16(a + i * 8);
#pragma GCC unroll 4
            for (int j = 0; j < PAIRS; ++j) sums[i][j] = vbfmmlaq_f32(sums[i][j], rows, columns[j]);
        }
    }
    for (int i = 0; i < PAIRS; ++i)
        for (int j = 0; j < PAIRS; ++j) {
            vst1_f32(c + 2 * i * SIDE + 2 * j, vget_low_f32(sums[i][j]));
            vst1_f32(c + (2 * i + 1) * SIDE + 2 * j, vget_high_f32(sums[i][j]));
        }
}

void store_rows(half_t* to, int64_t stride, const float* c, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i, to += stride, c += SIDE) {
        const uint16x8_t row = vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(vld1q_f32(c)), vld1q_f32(c + 4)));
        half_t some[SIDE];
        vst1q_u16(columns == SIDE ? to : some, row);
        for (int64_t j = 0; columns < SIDE && j < columns; ++j) to[j] = some[j];
    }
}

int64_t panel_bytes(int64_t k) { return k / DEPTH * STEP * static_cast<int64_t>(sizeof(bfloat16_t)); }
void nothing() {}

}  // namespace

const MatmulKernel& matmul() {
    static const MatmulKernel kernel = {
        .rows = SIDE,
        .columns = SIDE,
        .depth = DEPTH,
        .panel_a_bytes = panel_bytes,
        .panel_b_bytes = panel_bytes,
        .pack_a = pack,
        .pack_b = pack,
        .multiply = multiply,
        .store = store_rows,
        .begin = nothing,
        .end = nothing,
        .needs_finite = false,
    };
    return kernel;
}

}  // namespace torchane::bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
