// The table of inner loops: one per instruction set, filled by csrc/isa/, read by the drivers.
//
//     tape ──► drivers (chain, reduce, softmax, matmul, shape, staging: cut the work, call threads)
//                 └──► kernels(): blocks, rows and tiles for one thread
//
// To replace a kernel, change its entry here for one instruction set or for all. Every array is dense
// along the loop; fp16 numbers are carried as their bits. Each fp16 result is computed in fp32 from the
// exact operands and rounded once, to nearest even. Reference: mil/evaluate.py, arithmetic="exact".
#pragma once

#include <cstdint>

#include "half.h"

namespace torchane {

// Element-wise ops as the tape names them. Powers are pow with that constant exponent.
enum class Unary : int { copy, abs, exp, sqrt, tanh, sigmoid, silu, relu, square, cube, inverse, pow_minus_half, log, erf, count };
enum class Binary : int { add, sub, mul, div, max, min, pow, count };
// Which operands of a binary op are vectors and which a single number.
enum class Form : int { vector_vector, vector_scalar, scalar_vector, count };
enum class Reduction : int { sum, mean, max, min, count };

// What staging notices about the numbers it copies.
struct Scan {
    float max_abs = 0;       // over all that is not NaN, infinity included
    int64_t non_finite = 0;  // infinities and NaNs
    int64_t zeros = 0;       // exactly zero, of either sign
    int64_t count = 0;
};

// The pieces of a matrix product, C (m, n) = A (m, k) B (k, n). Operands are packed into panels of `rows`
// rows of A and `columns` columns of B, k in steps of `depth`, zeros where it ends. Rows and columns beyond the matrix
// may hold anything: what they give is not stored.
struct MatmulKernel {
    int rows, columns, depth;
    // Bytes of one panel of A or B over k (already a multiple of depth).
    int64_t (*panel_a_bytes)(int64_t k);
    int64_t (*panel_b_bytes)(int64_t k);
    // Packs `count` (<= rows, columns) rows of A or columns of B over k numbers. `along_k`: neighbours in
    // memory are neighbours in k, and `stride` leads to the next row or column; else `stride` leads to the
    // next k. Returns whether every number was finite.
    bool (*pack_a)(void* panel, const half_t* from, int64_t stride, bool along_k, int64_t count, int64_t k);
    bool (*pack_b)(void* panel, const half_t* from, int64_t stride, bool along_k, int64_t count, int64_t k);
    // c (rows, columns), dense, fp32 unless sum_bytes says that the kernel keeps its sums otherwise: c = (add ? c : 0) + panel_a panel_b, the sum over k in a fixed order.
    // Of the panel of A, `count` rows are in the matrix: a kernel may leave out the others.
    void (*multiply)(const void* panel_a, const void* panel_b, int64_t k, float* c, bool add, int64_t count);
    // The same of `count` rows and all columns, rounded to fp16, into rows `stride` apart, without a c in memory; null: multiply and store.
    void (*multiply_into)(const void* panel_a, const void* panel_b, int64_t k, half_t* to, int64_t stride, int64_t count) = nullptr;
    // Rounds the upper left (rows, columns) numbers of c to fp16, into rows `stride` apart.
    void (*store)(half_t* to, int64_t stride, const float* c, int64_t rows, int64_t columns);
    // Called by a thread before and after its multiplications.
    void (*begin)();
    void (*end)();
    bool needs_finite;  // infinities and NaNs in an operand would spoil the result
    int64_t piece = 0;  // a panel may be packed so many numbers of k at a time, in order, each where panel_bytes says that its k begins; 0: whole alone
    int64_t sum_bytes = sizeof(float);  // what one entry of c takes
};

// Products whose smaller operand has at most `most` rows or columns, without packing the larger one. `most` is 0 where there is no such kernel.
struct FewKernel {
    int most;
    int block;  // rows of the large operand that are best taken together
    // By the number of the small operand's rows or columns, less one. small holds k times so many numbers, in fp32. Row r of the large
    // operand and number s of the small one give out[r * to_next_large + s * to_next_small]. stride, along_k: as for packing a panel.
    void (*multiply[8])(half_t* out, int64_t to_next_large, int64_t to_next_small, const half_t* large, int64_t stride, bool along_k,
                        int64_t rows, const float* small, int64_t k);
};

// What one step of AdamW multiplies by, in fp32: computed in double from the step's number, the rate, betas and decay.
struct AdamW {
    float grad_factor;  // of clipping
    float keep_grad, beta2, keep_square;  // 1 - beta1, beta2, 1 - beta2
    float root_factor;  // 1 / sqrt(1 - beta2^step)
    float eps;
    float step_size;    // lr / (1 - beta1^step)
    float decay;        // 1 - lr * weight_decay
};

constexpr int TWISTER_WORDS = 624;

struct Kernels {
    void (*unary[static_cast<int>(Unary::count)])(half_t* d, const half_t* a, int64_t n);
    void (*binary[static_cast<int>(Binary::count)][static_cast<int>(Form::count)])(half_t* d, const half_t* a,
                                                                                   const half_t* b, int64_t n);

    void (*look_up)(half_t* d, const half_t* a, const half_t* table, int64_t n);  // table[a], by the bits of a

    // One row -> one number, in fp32, in an order that depends on n alone.
    float (*row[static_cast<int>(Reduction::count)])(const half_t* a, int64_t n);
    // acc[i] = acc[i] + a[i], or the larger, or the smaller.
    void (*columns[static_cast<int>(Reduction::count)])(float* acc, const half_t* a, int64_t n);
    // e^(x - max) / sum along a row; scratch holds n floats.
    void (*softmax_row)(half_t* d, const half_t* a, int64_t n, float* scratch);
    // g = p (g - sum of g p), along a row; each op rounded to fp16.
    void (*softmax_gradient_row)(half_t* g, const half_t* p, int64_t n);
    // softmax down n <= 64 columns, `stride` numbers from one entry of a column to the next.
    void (*softmax_columns)(half_t* d, const half_t* a, int64_t entries, int64_t stride, int64_t n);

    void (*narrow)(half_t* d, const float* a, int64_t n, float scale);           // fp16(a * scale)
    void (*narrow_bf16)(half_t* d, const uint16_t* a, int64_t n, float scale);   // a holds bf16
    void (*narrow_half)(half_t* d, const half_t* a, int64_t n, float scale);
    void (*narrow_bool)(half_t* d, const uint8_t* a, int64_t n, float scale);    // a holds booleans
    void (*widen)(float* d, const half_t* a, int64_t n, float scale);            // fp32(a) * scale
    void (*scan)(const half_t* a, int64_t n, Scan* into);
    double (*sum_of_squares)(const float* a, int64_t n);  // the same bits on every instruction set
    double (*sum_of_squares_half)(const half_t* a, int64_t n, float scale);  // of fp32(a) * scale, in the same order
    double (*sum)(const float* a, int64_t n);
    void (*scale)(float* a, int64_t n, float factor);
    float (*largest)(const float* a, int64_t n);  // magnitude; NaN where one is
    // The largest number of a row, and the sum of e^(number - largest).
    void (*powers_of_row)(const float* a, int64_t n, float* top, float* sum);
    void (*softmax_times)(float* d, const float* a, int64_t n, float top, float factor);  // e^(a - top) * factor
    // What single ops on fp16 rows would give, each rounded to fp16; d may be a. d = exp(a - top), whose sum is returned, and the least number of a, or 0 where that is less;
    // a = exp(a - taken) * factor, of rows of these; d = the same, of one number each.
    float (*sum_of_powers)(half_t* d, const half_t* a, int64_t n, half_t top, float* least);
    void (*powers_times)(half_t* a, const half_t* taken, const half_t* factor, int64_t n);
    void (*powers_times_one)(half_t* d, const half_t* a, half_t taken, half_t factor, int64_t n);
    // Makes the next words of the Mersenne Twister; what it gives for them; whether each number, the lower 53 bits of a pair of these, is below another.
    void (*twist)(uint32_t* words);
    void (*temper)(uint32_t* to, const uint32_t* words, int64_t n);
    void (*bernoulli)(uint8_t* to, const uint32_t* pairs, int64_t n, int64_t below);
    // Updates n numbers of a parameter and its moments; staged: where fp16(param) goes, or null.
    void (*adamw)(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, half_t* staged, int64_t n, const AdamW& numbers);

    MatmulKernel matmul;
    FewKernel few;  // exact
};

// What numbers mean: `exact`; the engine's own rules (engine.h), for which the entries of staging are absent; or `fast`, which is exact
// but for products of matrices, whose operands are rounded to bf16.
enum class Arithmetic : int { exact, engine, fast, count };

// The table of the active instruction set. For `fast` where has_fast().
const Kernels& kernels(Arithmetic arithmetic = Arithmetic::exact);
// The active instruction set multiplies bf16 numbers.
bool has_fast();
// A product that takes every number, infinities and NaNs included.
const MatmulKernel& finite_or_not_matmul();

#if defined(__aarch64__)
#define TORCHANE_HAS_BF16  // the build has products of bf16 numbers; whether the processor has them, has_fast() says
#endif

namespace base { const Kernels& table(); const Kernels& engine_table(); }
#if defined(TORCHANE_HAS_X86)
namespace avx2 { const Kernels& table(); const Kernels& engine_table(); }
namespace avx512 { const Kernels& table(); const Kernels& engine_table(); }
#endif
#if defined(TORCHANE_HAS_AMX)
namespace amx { const MatmulKernel& matmul(); const MatmulKernel& fast_matmul(); }
#endif
#if defined(TORCHANE_HAS_BF16)
namespace bf16 { const MatmulKernel& matmul(); }
#endif

}  // namespace torchane
