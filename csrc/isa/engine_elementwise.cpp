// Element-wise ops, reductions of a row and softmax in the engine's arithmetic. References: mil/engine/rules.py
// and softmax.py. A function of one number is a look-up.
#include <cmath>

#include "isa/engine_simd.h"
#include "isa/table.h"

namespace torchane::TORCHANE_ISA {
namespace {

constexpr int64_t EIGHT = 8, FOUR = 4, THIRTY_TWO = 32;

template <int op>
void lookup(half_t* d, const half_t* a, int64_t n) {
    const half_t* table = engine_tables().unary[op];
    for (int64_t i = 0; i < n; ++i) d[i] = table[a[i]];
}

void copy(half_t* d, const half_t* a, int64_t n) { __builtin_memcpy(d, a, static_cast<size_t>(n) * sizeof(half_t)); }

// fp32 is wide enough that its rounding is never seen in the fp16 result: 24 bits are 2 * 11 + 2.
struct Add { TORCHANE_INLINE vn of(vn x, vn y) { return x + y; } };
struct Sub { TORCHANE_INLINE vn of(vn x, vn y) { return x - y; } };
struct Mul { TORCHANE_INLINE vn of(vn x, vn y) { return x * y; } };
struct Div { TORCHANE_INLINE vn of(vn x, vn y) { return x / y; } };
struct Max { TORCHANE_INLINE vn of(vn x, vn y) { return x > y ? x : y; } };
struct Min { TORCHANE_INLINE vn of(vn x, vn y) { return x < y ? x : y; } };

template <typename Op, int a_step, int b_step>
void binary(half_t* d, const half_t* a, const half_t* b, int64_t n) {
    const vn x = splat(engine_decode(a[0])), y = splat(engine_decode(b[0]));
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) encode(d + i, Op::of(a_step ? decode(a + i) : x, b_step ? decode(b + i) : y));
    if (i < n) encode_n(d + i, Op::of(a_step ? decode_n(a + i, n - i) : x, b_step ? decode_n(b + i, n - i) : y), n - i);
}

// Any exponent: in double, number by number. One exponent of a half for all numbers is a root, as NumPy has it: of -0 it
// is -0, where pow gives 0.
template <int a_step, int b_step>
void power(half_t* d, const half_t* a, const half_t* b, int64_t n) {
    const bool is_root = b_step == 0 && engine_decode(*b) == 0.5f;
    for (int64_t i = 0; i < n; ++i) {
        const double x = engine_decode(a[i * a_step]), y = engine_decode(b[i * b_step]);
        d[i] = engine_encode(to_odd(is_root ? ::sqrt(x) : pow(x, y)));
    }
}

template <typename Op>
void fill(Kernels& table, Binary op) {
    auto& forms = table.binary[static_cast<int>(op)];
    forms[static_cast<int>(Form::vector_vector)] = binary<Op, 1, 1>;
    forms[static_cast<int>(Form::vector_scalar)] = binary<Op, 1, 0>;
    forms[static_cast<int>(Form::scalar_vector)] = binary<Op, 0, 1>;
}

double total(const half_t* a, int64_t n) {
    typedef double vd __attribute__((vector_size(LANES * 8)));
    vd sums = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += __builtin_convertvector(decode(a + i), vd);
    if (i < n) sums += __builtin_convertvector(decode_n(a + i, n - i), vd);
    double sum = 0;
    for (int l = 0; l < LANES; ++l) sum += sums[l];
    return sum;
}

float sum(const half_t* a, int64_t n) { return to_odd(total(a, n)); }
float mean(const half_t* a, int64_t n) { return to_odd(total(a, n) / static_cast<double>(n)); }

template <typename Op>
float best(const half_t* a, int64_t n) {
    vn found = splat(engine_decode(a[0]));
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) found = Op::of(found, decode(a + i));
    for (; i < n; ++i) found = Op::of(found, splat(engine_decode(a[i])));
    for (int l = 1; l < LANES; ++l) found = Op::of(found, splat(found[l]));
    return found[0];
}

void narrow(half_t* d, const float* a, int64_t n, float scale) {
    for (int64_t i = 0; i < n; ++i) d[i] = engine_encode(a[i] * scale);
}

TORCHANE_INLINE float rounded(float value) { return engine_decode(engine_encode(value)); }
TORCHANE_INLINE float plus(float a, float b) { return rounded(a + b); }
TORCHANE_INLINE vn plus(vn a, vn b) { return torchane::TORCHANE_ISA::rounded(a + b); }

// Eight numbers as the engine adds them.
TORCHANE_INLINE vn eight(const vn (&e)[EIGHT]) {
    return plus(plus(plus(plus(e[0], e[1]), e[2]), plus(plus(e[3], e[4]), e[5])), plus(e[6], e[7]));
}

// Down n <= LANES columns, `stride` numbers apart.
void softmax_vector(half_t* d, const half_t* a, int64_t entries, int64_t stride, int64_t n) {
    const half_t* table = engine_tables().unary[static_cast<int>(Unary::exp)];
    vn top = decode_n(a, n);
    for (int64_t e = 1; e < entries; ++e) top = Max::of(top, decode_n(a + e * stride, n));
    for (int64_t e = 0; e < entries; ++e) {
        half_t* to = d + e * stride;
        encode_n(to, decode_n(a + e * stride, n) - top, n);
        for (int64_t i = 0; i < n; ++i) to[i] = table[to[i]];
    }
    vn sum = {};
    for (int64_t t = 0; t < entries; t += THIRTY_TWO) {
        vn part = {};
        for (int64_t f = t; f < t + THIRTY_TWO; f += EIGHT) {
            vn e[EIGHT];
            for (int64_t i = 0; i < EIGHT; ++i) e[i] = f + i < entries ? decode_n(d + (f + i) * stride, n) : vn{};
            part = f == t ? eight(e) : plus(part, eight(e));
        }
        sum = t == 0 ? part : plus(sum, part);
    }
    half_t sums[LANES];
    encode(sums, sum);
    for (int l = 0; l < LANES; ++l) sums[l] = engine_tables().reciprocal[sums[l]];
    const vn inverse = decode(sums);
    for (int64_t e = 0; e < entries; ++e) encode_n(d + e * stride, decode_n(d + e * stride, n) * inverse, n);
}

void softmax_columns(half_t* d, const half_t* a, int64_t entries, int64_t stride, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES)
        softmax_vector(d + i, a + i, entries, stride, n - i < LANES ? n - i : LANES);
}

// Along a row. scratch holds n numbers and as many zeros as make them a multiple of 32.
void softmax_row(half_t* d, const half_t* a, int64_t n, float* scratch) {
    const half_t* table = engine_tables().unary[static_cast<int>(Unary::exp)];
    const vn top = splat(best<Max>(a, n));
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) encode(d + i, decode(a + i) - top);
    if (i < n) encode_n(d + i, decode_n(a + i, n - i) - top, n - i);
    for (i = 0; i < n; ++i) d[i] = table[d[i]];
    const int64_t padded = (n + THIRTY_TWO - 1) / THIRTY_TWO * THIRTY_TWO;
    for (i = 0; i + LANES <= n; i += LANES) store(scratch + i, (vf)decode(d + i));
    if (i < n) store(scratch + i, (vf)decode_n(d + i, n - i)), i += LANES;
    for (; i < padded; ++i) scratch[i] = 0.0f;

    // LANES eights side by side; their sums take the place of the numbers.
    const int64_t eights = padded / EIGHT;
    for (int64_t first = 0; first < eights; first += LANES) {
        const int64_t count = eights - first < LANES ? eights - first : LANES;
        vn e[EIGHT] = {};
        for (int64_t l = 0; l < count; ++l)
            for (int64_t k = 0; k < EIGHT; ++k) e[k][l] = scratch[(first + l) * EIGHT + k];
        const vn sums = eight(e);
        for (int64_t l = 0; l < count; ++l) scratch[first + l] = sums[l];
    }
    float sum = 0;
    for (int64_t t = 0; t < eights; t += FOUR) {
        const float part = plus(plus(plus(scratch[t], scratch[t + 1]), scratch[t + 2]), scratch[t + 3]);
        sum = t == 0 ? part : plus(sum, part);
    }
    const vn inverse = splat(engine_decode(engine_tables().reciprocal[engine_encode(sum)]));
    for (i = 0; i + LANES <= n; i += LANES) encode(d + i, decode(d + i) * inverse);
    if (i < n) encode_n(d + i, decode_n(d + i, n - i) * inverse, n - i);
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
    auto& powers = table.binary[static_cast<int>(Binary::pow)];
    powers[static_cast<int>(Form::vector_vector)] = power<1, 1>;
    powers[static_cast<int>(Form::vector_scalar)] = power<1, 0>;
    powers[static_cast<int>(Form::scalar_vector)] = power<0, 1>;
    table.row[static_cast<int>(Reduction::sum)] = sum;
    table.row[static_cast<int>(Reduction::mean)] = mean;
    table.row[static_cast<int>(Reduction::max)] = best<Max>;
    table.row[static_cast<int>(Reduction::min)] = best<Min>;
    table.softmax_row = softmax_row;
    table.softmax_columns = softmax_columns;
    table.narrow = narrow;
}

}  // namespace torchane::TORCHANE_ISA
