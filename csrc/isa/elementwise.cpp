// Element-wise ops over a block: load fp16, compute in fp32, round once. Every function of one number gives the fp16
// number nearest to the exact result, on every instruction set.
// References: mil/ops/elementwise.py, unary.py, activation.py.
#include <math.h>

#include "isa/nearest.h"
#include "isa/table.h"

namespace torchane::TORCHANE_ISA {
namespace {

template <typename Op>
void each(half_t* d, const half_t* a, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(d + i, Op::of(load(a + i)));
    if (i < n) store_n(d + i, Op::of(load_n(a + i, n - i)), n - i);
}

template <typename Op>
void each_nearest(half_t* d, const half_t* a, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) nearest_of<Op>(d + i, load(a + i));
    if (i == n) return;
    half_t last[LANES];
    nearest_of<Op>(last, load_n(a + i, n - i));
    __builtin_memcpy(d + i, last, static_cast<size_t>(n - i) * sizeof(half_t));
}

template <typename Op>
void vector_vector(half_t* d, const half_t* a, const half_t* b, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(d + i, Op::of(load(a + i), load(b + i)));
    if (i < n) store_n(d + i, Op::of(load_n(a + i, n - i), load_n(b + i, n - i)), n - i);
}

template <typename Op>
void vector_scalar(half_t* d, const half_t* a, const half_t* b, int64_t n) {
    const vf y = set1(half_to_float(*b));
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(d + i, Op::of(load(a + i), y));
    if (i < n) store_n(d + i, Op::of(load_n(a + i, n - i), y), n - i);
}

template <typename Op>
void scalar_vector(half_t* d, const half_t* a, const half_t* b, int64_t n) {
    const vf x = set1(half_to_float(*a));
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(d + i, Op::of(x, load(b + i)));
    if (i < n) store_n(d + i, Op::of(x, load_n(b + i, n - i)), n - i);
}

// A root as pow has it: of -0 it is that of +0, of -infinity that of +infinity.
TORCHANE_INLINE vf root(vf x) {
    const vf infinity = set1(__builtin_inff());
    return sqrt(select(equal(x, set1(0.0f) - infinity), infinity, x + set1(0.0f)));
}

struct Abs { static vf of(vf x) { return abs(x); } };
struct Sqrt { static vf of(vf x) { return sqrt(x); } };
struct Tanh {
    static constexpr float margin = MARGIN;
    static vf of(vf x) { return tanh(x); }
    static double exactly(double x) { return ::tanh(x); }
};
struct Sigmoid {
    static constexpr float margin = MARGIN;
    static vf of(vf x) { return sigmoid(x); }
    static double exactly(double x) { return 1.0 / (1.0 + ::exp(-x)); }
};
struct Silu {
    static constexpr float margin = MARGIN;
    static vf of(vf x) {  // NaN of -infinity
        const vf infinity = set1(__builtin_inff());
        return x * select(equal(x, set1(0.0f) - infinity), set1(0.0f), sigmoid(x));
    }
    static double exactly(double x) { return x / (1.0 + ::exp(-x)); }
};
struct Relu { static vf of(vf x) { return larger(x, set1(0.0f)); } };
struct Square { static vf of(vf x) { return x * x; } };
struct Cube { static vf of(vf x) { return x * x * x; } };
struct Inverse { static vf of(vf x) { return set1(1.0f) / x; } };
struct PowMinusHalf { static vf of(vf x) { return set1(1.0f) / root(x); } };

struct Add { static vf of(vf x, vf y) { return x + y; } };
struct Sub { static vf of(vf x, vf y) { return x - y; } };
struct Mul { static vf of(vf x, vf y) { return x * y; } };
struct Div { static vf of(vf x, vf y) { return x / y; } };
struct Max { static vf of(vf x, vf y) { return larger(x, y); } };
struct Min { static vf of(vf x, vf y) { return smaller(x, y); } };

void copy(half_t* d, const half_t* a, int64_t n) { __builtin_memcpy(d, a, static_cast<size_t>(n) * sizeof(half_t)); }

// Any exponent: in double, number by number. Programs of ours use the constant exponents above.
template <int a_step, int b_step>
void power(half_t* d, const half_t* a, const half_t* b, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        d[i] = nearest_half(pow(static_cast<double>(half_to_float(a[i * a_step])), static_cast<double>(half_to_float(b[i * b_step]))));
}

// In double, number by number: few programs have a logarithm of more than a number a row.
template <double (*function)(double)>
void in_double(half_t* d, const half_t* a, int64_t n) {
    for (int64_t i = 0; i < n; ++i) d[i] = nearest_half(function(half_to_float(a[i])));
}

template <typename Op>
void fill(Kernels& table, Binary op) {
    auto& forms = table.binary[static_cast<int>(op)];
    forms[static_cast<int>(Form::vector_vector)] = vector_vector<Op>;
    forms[static_cast<int>(Form::vector_scalar)] = vector_scalar<Op>;
    forms[static_cast<int>(Form::scalar_vector)] = scalar_vector<Op>;
}

void look_up(half_t* d, const half_t* a, const half_t* table, int64_t n) {
    for (int64_t i = 0; i < n; ++i) d[i] = table[a[i]];
}

}  // namespace

void fill_elementwise(Kernels& table) {
    const auto unary = [&](Unary op, auto function) { table.unary[static_cast<int>(op)] = function; };
    unary(Unary::copy, copy);
    unary(Unary::abs, each<Abs>);
    unary(Unary::exp, each_nearest<Exp>);
    unary(Unary::sqrt, each<Sqrt>);
    unary(Unary::tanh, each_nearest<Tanh>);
    unary(Unary::sigmoid, each_nearest<Sigmoid>);
    unary(Unary::silu, each_nearest<Silu>);
    unary(Unary::relu, each<Relu>);
    unary(Unary::square, each<Square>);
    unary(Unary::cube, each<Cube>);
    unary(Unary::inverse, each<Inverse>);
    unary(Unary::pow_minus_half, each<PowMinusHalf>);
    unary(Unary::log, in_double<::log>);
    unary(Unary::erf, in_double<::erf>);
    fill<Add>(table, Binary::add);
    fill<Sub>(table, Binary::sub);
    fill<Mul>(table, Binary::mul);
    fill<Div>(table, Binary::div);
    fill<Max>(table, Binary::max);
    fill<Min>(table, Binary::min);
    auto& powers = table.binary[static_cast<int>(Binary::pow)];
    powers[static_cast<int>(Form::vector_vector)] = power<1, 1>;
    powers[static_cast<int>(Form::vector_scalar)] = power<1, 0>;
    powers[static_cast<int>(Form::scalar_vector)] = power<0, 1>;
    table.look_up = look_up;
}

}  // namespace torchane::TORCHANE_ISA
