// Element-wise ops, reductions of a row and softmax in the engine's arithmetic. References: mil/engine/rules.py
// and softmax.py. A function of one number is a look-up; the plain loops are left to the compiler's vectors.
#include <cmath>

#include "engine.h"
#include "isa/simd.h"
#include "isa/table.h"

namespace torchane::TORCHANE_ISA {
namespace {

constexpr int64_t EIGHT = 8, FOUR = 4;

template <int op>
void lookup(half_t* d, const half_t* a, int64_t n) {
    const half_t* table = engine_tables().unary[op];
    for (int64_t i = 0; i < n; ++i) d[i] = table[a[i]];
}

void copy(half_t* d, const half_t* a, int64_t n) { __builtin_memcpy(d, a, static_cast<size_t>(n) * sizeof(half_t)); }

// fp32 is wide enough that its rounding is never seen in the fp16 result: 24 bits are 2 * 11 + 2.
struct Add { TORCHANE_INLINE float of(float x, float y) { return x + y; } };
struct Sub { TORCHANE_INLINE float of(float x, float y) { return x - y; } };
struct Mul { TORCHANE_INLINE float of(float x, float y) { return x * y; } };
struct Div { TORCHANE_INLINE float of(float x, float y) { return x / y; } };
struct Max { TORCHANE_INLINE float of(float x, float y) { return x > y ? x : y; } };
struct Min { TORCHANE_INLINE float of(float x, float y) { return x < y ? x : y; } };
struct Pow { TORCHANE_INLINE float of(float x, float y) { return to_odd(pow(static_cast<double>(x), static_cast<double>(y))); } };

template <typename Op, int a_step, int b_step>
void binary(half_t* d, const half_t* a, const half_t* b, int64_t n) {
    const float x = engine_decode(a[0]), y = engine_decode(b[0]);
    for (int64_t i = 0; i < n; ++i)
        d[i] = engine_encode(Op::of(a_step ? engine_decode(a[i]) : x, b_step ? engine_decode(b[i]) : y));
}

template <typename Op>
void fill(Kernels& table, Binary op) {
    auto& forms = table.binary[static_cast<int>(op)];
    forms[static_cast<int>(Form::vector_vector)] = binary<Op, 1, 1>;
    forms[static_cast<int>(Form::vector_scalar)] = binary<Op, 1, 0>;
    forms[static_cast<int>(Form::scalar_vector)] = binary<Op, 0, 1>;
}

double total(const half_t* a, int64_t n) {
    constexpr int LANE = 16;
    double sums[LANE] = {};
    int64_t i = 0;
    for (; i + LANE <= n; i += LANE)
        for (int l = 0; l < LANE; ++l) sums[l] += engine_decode(a[i + l]);
    for (int l = 1; l < LANE; ++l) sums[0] += sums[l];
    for (; i < n; ++i) sums[0] += engine_decode(a[i]);
    return sums[0];
}

float sum(const half_t* a, int64_t n) { return to_odd(total(a, n)); }
float mean(const half_t* a, int64_t n) { return to_odd(total(a, n) / static_cast<double>(n)); }

template <typename Op>
float best(const half_t* a, int64_t n) {
    float found = engine_decode(a[0]);
    for (int64_t i = 1; i < n; ++i) found = Op::of(found, engine_decode(a[i]));
    return found;
}

void narrow(half_t* d, const float* a, int64_t n, float scale) {
    for (int64_t i = 0; i < n; ++i) d[i] = engine_encode(a[i] * scale);
}

TORCHANE_INLINE float plus(float a, float b) { return engine_decode(engine_encode(a + b)); }

// Down n <= 64 columns, `stride` numbers apart: the order of the additions is that of softmax.py, row_sum.
void softmax_columns(half_t* d, const half_t* a, int64_t entries, int64_t stride, int64_t n) {
    constexpr int64_t MOST = 64;
    const half_t* table = engine_tables().unary[static_cast<int>(Unary::exp)];
    float top[MOST], sum[MOST], part[MOST];
    for (int64_t j = 0; j < n; ++j) top[j] = engine_decode(a[j]);
    for (int64_t e = 1; e < entries; ++e)
        for (int64_t j = 0; j < n; ++j) top[j] = Max::of(top[j], engine_decode(a[e * stride + j]));
    for (int64_t e = 0; e < entries; ++e)
        for (int64_t j = 0; j < n; ++j)
            d[e * stride + j] = table[engine_encode(engine_decode(a[e * stride + j]) - top[j])];
    const int64_t thirties = (entries + EIGHT * FOUR - 1) / (EIGHT * FOUR);
    for (int64_t t = 0; t < thirties; ++t) {
        for (int64_t f = 0; f < FOUR; ++f) {
            const int64_t first = (t * FOUR + f) * EIGHT;
            const auto at = [&](int64_t e, int64_t j) { return first + e < entries ? engine_decode(d[(first + e) * stride + j]) : 0.0f; };
            for (int64_t j = 0; j < n; ++j) {
                const float left = plus(plus(at(0, j), at(1, j)), at(2, j)), middle = plus(plus(at(3, j), at(4, j)), at(5, j));
                const float eight = plus(plus(left, middle), plus(at(6, j), at(7, j)));
                part[j] = f == 0 ? eight : plus(part[j], eight);
            }
        }
        for (int64_t j = 0; j < n; ++j) sum[j] = t == 0 ? part[j] : plus(sum[j], part[j]);
    }
    for (int64_t j = 0; j < n; ++j) sum[j] = engine_decode(engine_tables().reciprocal[engine_encode(sum[j])]);
    for (int64_t e = 0; e < entries; ++e)
        for (int64_t j = 0; j < n; ++j) d[e * stride + j] = engine_encode(engine_decode(d[e * stride + j]) * sum[j]);
}

// Along a row of n numbers.
void softmax_row(half_t* d, const half_t* a, int64_t n, float* scratch) {
    const half_t* table = engine_tables().unary[static_cast<int>(Unary::exp)];
    const float top = best<Max>(a, n);
    for (int64_t i = 0; i < n; ++i) d[i] = engine_encode(engine_decode(a[i]) - top);
    for (int64_t i = 0; i < n; ++i) d[i] = table[d[i]];
    for (int64_t i = 0; i < n; ++i) scratch[i] = engine_decode(d[i]);
    float sum = 0;
    for (int64_t t = 0; t < n; t += EIGHT * FOUR) {
        float eights[FOUR];
        for (int64_t f = 0; f < FOUR; ++f) {
            float e[EIGHT];
            for (int64_t i = 0; i < EIGHT; ++i) e[i] = t + f * EIGHT + i < n ? scratch[t + f * EIGHT + i] : 0.0f;
            eights[f] = plus(plus(plus(plus(e[0], e[1]), e[2]), plus(plus(e[3], e[4]), e[5])), plus(e[6], e[7]));
        }
        const float thirty_two = plus(plus(plus(eights[0], eights[1]), eights[2]), eights[3]);
        sum = t == 0 ? thirty_two : plus(sum, thirty_two);
    }
    const float r = engine_decode(engine_tables().reciprocal[engine_encode(sum)]);
    for (int64_t i = 0; i < n; ++i) d[i] = engine_encode(scratch[i] * r);
}

template <int op>
void fill_lookups(Kernels& table) {
    if constexpr (op < static_cast<int>(Unary::count)) {
        table.unary[op] = lookup<op>;
        fill_lookups<op + 1>(table);
    }
}

}  // namespace

void fill_engine(Kernels& table) {
    fill_lookups<0>(table);
    table.unary[static_cast<int>(Unary::copy)] = copy;
    fill<Add>(table, Binary::add);
    fill<Sub>(table, Binary::sub);
    fill<Mul>(table, Binary::mul);
    fill<Div>(table, Binary::div);
    fill<Max>(table, Binary::max);
    fill<Min>(table, Binary::min);
    fill<Pow>(table, Binary::pow);
    table.row[static_cast<int>(Reduction::sum)] = sum;
    table.row[static_cast<int>(Reduction::mean)] = mean;
    table.row[static_cast<int>(Reduction::max)] = best<Max>;
    table.row[static_cast<int>(Reduction::min)] = best<Min>;
    table.softmax_row = softmax_row;
    table.softmax_columns = softmax_columns;
    table.narrow = narrow;
}

}  // namespace torchane::TORCHANE_ISA
