// Runs the portable kernels against plain loops in double, without Python: for processors that the machine
// at hand only emulates. Prints what differs; ends with 0 if nothing does.
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <vector>

#include "loss.h"
#include "optimizer.h"
#include "staging.h"
#include "steps.h"

using namespace torchane;

namespace {

int failures = 0;

void require(bool holds, const char* what) {
    if (holds) return;
    std::printf("FAILED: %s\n", what);
    ++failures;
}

double value(half_t h) { return half_to_float(h); }

// Rounds a double to fp16 once, to nearest even.
half_t rounded(double x) {
    if (std::isnan(x) || std::isinf(x)) return float_to_half(static_cast<float>(x));
    int exponent;
    std::frexp(x, &exponent);
    const double unit = std::ldexp(1.0, std::max(exponent - 11, -24));
    return float_to_half(static_cast<float>(std::nearbyint(x / unit) * unit));
}

int distance(half_t a, half_t b) {
    if (std::isnan(value(a)) || std::isnan(value(b))) return std::isnan(value(a)) == std::isnan(value(b)) ? 0 : 99999;
    const auto place = [](half_t h) { return h & 0x8000 ? -(h & 0x7fff) : h; };
    return std::abs(place(a) - place(b));
}

std::vector<half_t> numbers(size_t count) {
    std::vector<half_t> made(count);
    uint32_t state = 12345;
    for (half_t& h : made) {
        state = state * 1664525u + 1013904223u;
        h = float_to_half((static_cast<float>(state >> 8) / 8388608.0f - 1.0f) * 2.0f);
    }
    return made;
}

void check_conversions() {
    const Kernels& table = kernels();
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const half_t h = static_cast<half_t>(bits);
        float wide;
        table.widen(&wide, &h, 1, 1.0f);
        half_t back;
        table.narrow(&back, &wide, 1, 1.0f);
        if (std::isnan(wide) ? !std::isnan(value(back)) : back != h) return require(false, "fp16 to fp32 and back");
    }
}

void check_unary() {
    std::vector<half_t> every(0x10000), got(0x10000);
    for (size_t i = 0; i < every.size(); ++i) every[i] = static_cast<half_t>(i);
    const auto check = [&](Unary op, const char* name, double (*exact)(double)) {
        kernels().unary[static_cast<int>(op)](got.data(), every.data(), static_cast<int64_t>(every.size()));
        int worst = 0;
        for (size_t i = 0; i < every.size(); ++i) worst = std::max(worst, distance(got[i], rounded(exact(value(every[i])))));
        require(worst == 0, name);
    };
    check(Unary::exp, "exp", [](double x) { return std::exp(x); });
    check(Unary::tanh, "tanh", [](double x) { return std::tanh(x); });
    check(Unary::sigmoid, "sigmoid", [](double x) { return 1 / (1 + std::exp(-x)); });
    check(Unary::silu, "silu", [](double x) { return x / (1 + std::exp(-x)); });
    check(Unary::log, "log", [](double x) { return std::log(x); });
    check(Unary::erf, "erf", [](double x) { return std::erf(x); });
    check(Unary::sqrt, "sqrt", [](double x) { return std::sqrt(x); });
    check(Unary::square, "square", [](double x) { return x * x; });
    check(Unary::pow_minus_half, "pow -0.5", [](double x) { return std::pow(x, -0.5); });
}

// bf16 in a float's upper half, to nearest even.
double to_bf16(double x) {
    const uint32_t bits = float_to_bits(static_cast<float>(x));
    return bits_to_float((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
}

void check_matmul(Arithmetic arithmetic, int64_t m, int64_t n, int64_t k, bool transpose_x, bool transpose_y) {
    const bool is_fast = arithmetic == Arithmetic::fast;
    const auto seen = [&](half_t h) { return is_fast ? to_bf16(value(h)) : value(h); };
    std::vector<half_t> x = numbers(static_cast<size_t>(m * k)), y = numbers(static_cast<size_t>(k * n)), out(static_cast<size_t>(m * n));
    Matmul step;
    step.x = {0, 0}, step.y = {1, 0}, step.out = {2, 0};
    step.m = m, step.n = n, step.k = k, step.transpose_x = transpose_x, step.transpose_y = transpose_y;
    const std::vector<half_t*> spaces{x.data(), y.data(), out.data()};
    Memory shared;
    step.run({spaces, shared, arithmetic});
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
            double sum = 0, size = 0;
            for (int64_t p = 0; p < k; ++p) {
                const double term = seen(x[static_cast<size_t>(transpose_x ? p * m + i : i * k + p)]) *
                                    seen(y[static_cast<size_t>(transpose_y ? j * k + p : p * n + j)]);
                sum += term;
                size += std::abs(term);
            }
            const double allowed = static_cast<double>(k) * (is_fast ? 0x1p-23 : 0x1p-24) * size + 0x1p-11 * std::abs(sum) + 0x1p-25;
            if (std::abs(value(out[static_cast<size_t>(i * n + j)]) - sum) > allowed) return require(false, is_fast ? "matmul in fast arithmetic" : "matmul");
        }
}

// A product of two heads, each operand in a space of its own.
Matmul product_of(int x, int y, int out, int64_t m, int64_t n, int64_t k, bool transpose_x, bool transpose_y) {
    Matmul made;
    made.x = {x, 0}, made.y = {y, 0}, made.out = {out, 0}, made.m = m, made.n = n, made.k = k;
    made.transpose_x = transpose_x, made.transpose_y = transpose_y;
    made.batch = {2}, made.x_strides = {m * k}, made.y_strides = {k * n};
    return made;
}

// Attention and its gradient in one step, and as the steps that it stands for: the same bits.
void check_attention(Arithmetic arithmetic, int64_t m, int64_t n, int64_t d) {
    enum { Q, K, V, G, MASK, S, P, DP, DS, FIRST };  // operands, (m, n) arrays, then four results of either way
    const auto count = [](int64_t size) { return static_cast<size_t>(size); };
    std::vector<std::vector<half_t>> arrays;
    for (int64_t size : {2 * d * m, 2 * d * n, 2 * d * n, 2 * d * m, m * n, 2 * m * n, 2 * m * n, 2 * m * n, 2 * m * n}) arrays.push_back(numbers(count(size)));
    for (int way = 0; way < 2; ++way)
        for (int64_t size : {2 * m * d, 2 * d * n, 2 * d * m, 2 * n * d}) arrays.emplace_back(count(size), half_t{0x7e00});
    for (int64_t i = 0; i < m * n; ++i) arrays[MASK][count(i)] = float_to_half(i % n > i / n + n - m ? -30000.0f : 0.0f);
    std::vector<half_t*> spaces;
    for (std::vector<half_t>& array : arrays) spaces.push_back(array.data());
    Memory shared;
    const Run run{spaces, shared, arithmetic};
    const Matmul scores = product_of(Q, K, S, m, n, d, true, false), gradient = product_of(G, V, DP, m, n, d, true, false);
    const auto readers = [&](int to) {
        return std::vector<Matmul>{product_of(P, V, to, m, d, n, false, true), product_of(G, P, to + 1, d, n, m, false, false),
                                   product_of(K, DS, to + 2, d, m, n, false, true), product_of(DS, Q, to + 3, n, d, m, true, true)};
    };
    const Kernels& table = kernels(arithmetic);
    std::vector<float> floats(count(n));
    std::vector<half_t> line(count(n));
    scores.run(run), gradient.run(run);
    for (int64_t row = 0; row < 2 * m; ++row) {
        half_t *s = spaces[S] + row * n, *p = spaces[P] + row * n, *dp = spaces[DP] + row * n, *ds = spaces[DS] + row * n;
        const auto binary = [&](Binary op, Form form, half_t* to, const half_t* a, const half_t* b) {
            table.binary[static_cast<int>(op)][static_cast<int>(form)](to, a, b, n);
        };
        binary(Binary::add, Form::vector_vector, s, s, spaces[MASK] + row % m * n);
        table.softmax_row(p, s, n, floats.data());
        binary(Binary::mul, Form::vector_vector, line.data(), dp, p);
        const half_t total = float_to_half(table.row[static_cast<int>(Reduction::sum)](line.data(), n));
        binary(Binary::sub, Form::vector_scalar, ds, dp, &total);
        binary(Binary::mul, Form::vector_vector, ds, p, ds);
    }
    for (const Matmul& reader : readers(FIRST)) reader.run(run);
    Attention step;
    step.m = m, step.n = n, step.batch = {2}, step.has_probabilities = step.has_gradient = step.has_mask = true, step.keeps = false;
    step.probabilities = scores, step.gradient = gradient, step.mask = {MASK, 0}, step.mask_strides = {0}, step.mask_row = n;
    for (int64_t begin = 0; begin < m; begin += Attention::ROWS) {
        step.live.push_back(std::min(n, std::min(m, begin + Attention::ROWS) + n - m));
        step.gap.push_back(30000.0f);
    }
    const std::vector<Matmul> after = readers(FIRST + 4);
    step.readers = {{after[0], false, true}, {after[1], false, false}, {after[2], true, false}, {after[3], true, true}};
    step.check();
    step.run(run);
    for (int result = FIRST; result < FIRST + 4; ++result)
        require(arrays[count(result)] == arrays[count(result + 4)], arithmetic == Arithmetic::fast ? "attention in fast arithmetic" : "attention");
}

// What stands for the ops of a slice of a vocabulary, and must not be asked for here.
struct Unasked final : Step {
    void run(const Run&) const override { require(false, "a vocabulary by its ops one by one"); }
    std::vector<Extent> extents() const override { return {}; }
};

// A slice of a vocabulary in one step, and op by op: the same bits. Token t's target is entry 3 t; the last tokens have none. keeps: scores are written forward, and
// read backward in place of the product.
void check_vocabulary(Arithmetic arithmetic, bool is_forward, bool keeps, int64_t tokens, int64_t entries) {
    enum { X, WEIGHT, CODE, TAKEN, REST, GRAD, SCORES, FIRST, KEPT = FIRST + 6 };  // operands, scores, then three results of either way
    constexpr int64_t CHANNELS = 20, BITS = 15;
    const half_t left_out = float_to_half(-10000.0f);
    const bool by_token = is_forward || keeps;
    const int64_t m = by_token ? tokens : entries, n = by_token ? entries : tokens, outs = is_forward ? tokens : m * n;
    std::vector<std::vector<half_t>> arrays;
    for (int64_t size : {CHANNELS * tokens, entries * CHANNELS, BITS * tokens, tokens, tokens, tokens, m * n, outs, outs, outs, outs, outs, outs, m * n})
        arrays.push_back(numbers(static_cast<size_t>(size)));
    const auto target = [&](int64_t t) { return t + 5 < tokens && 3 * t < entries ? 3 * t : -1; };
    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t bit = 0; bit < BITS; ++bit)
            arrays[CODE][static_cast<size_t>(bit * tokens + t)] = float_to_half(target(t) < 0 ? 0.0f : target(t) >> bit & 1 ? 1.0f : -1.0f);
        arrays[REST][static_cast<size_t>(t)] &= 0x7fff;
    }
    std::vector<half_t*> spaces;
    for (std::vector<half_t>& array : arrays) spaces.push_back(array.data());
    Memory shared;
    const Run run{spaces, shared, arithmetic};
    Vocabulary step;
    step.scores.x = {by_token ? X : WEIGHT, 0}, step.scores.y = {by_token ? WEIGHT : X, 0}, step.scores.out = {SCORES, 0};
    step.scores.m = m, step.scores.n = n, step.scores.k = CHANNELS;
    step.scores.transpose_x = step.scores.transpose_y = by_token;
    step.scores.run(run);
    step.keeps = keeps, step.kept = {is_forward ? KEPT : SCORES, 0};
    step.scores.out = {is_forward ? KEPT : FIRST, 0};
    step.is_forward = is_forward, step.code = {CODE, 0}, step.code_size = BITS, step.left_out = left_out;
    step.top = {FIRST, 0}, step.total = {FIRST + 1, 0}, step.own = {FIRST + 2, 0};
    step.taken = {TAKEN, 0}, step.rest = {REST, 0}, step.grad = {GRAD, 0}, step.out = {FIRST, 0};
    step.parts.push_back(std::make_unique<Unasked>());
    step.check();
    step.run(run);
    const Kernels& table = kernels(arithmetic);
    const auto binary = [&](Binary op, half_t a, half_t b) {
        half_t d;
        table.binary[static_cast<int>(op)][static_cast<int>(Form::vector_vector)](&d, &a, &b, 1);
        return d;
    };
    const auto power = [&](half_t a) {
        half_t d;
        table.unary[static_cast<int>(Unary::exp)](&d, &a, 1);
        return d;
    };
    const half_t zero = 0, one = float_to_half(1.0f);
    std::vector<half_t> others(static_cast<size_t>(n)), moved(others), powers(others);
    for (int64_t row = 0; row < m; ++row) {
        half_t* scores = spaces[SCORES] + row * n;
        for (int64_t column = 0; column < n; ++column) {
            const int64_t t = by_token ? row : column, entry = by_token ? column : row;
            const half_t is_target = target(t) == entry ? one : zero, gap = binary(Binary::mul, is_target, left_out);
            const size_t i = static_cast<size_t>(column);
            others[i] = binary(Binary::add, scores[column], gap);
            moved[i] = binary(Binary::add, scores[column], binary(Binary::sub, left_out, gap));
            if (is_forward) continue;
            const half_t e = power(binary(Binary::sub, others[i], spaces[TAKEN][t]));
            const half_t less = binary(Binary::sub, e, binary(Binary::mul, is_target, spaces[REST][t]));
            spaces[FIRST + 3][row * n + column] = binary(Binary::mul, less, spaces[GRAD][t]);
        }
        if (!is_forward) continue;
        const auto folded = [&](Reduction reduction, const std::vector<half_t>& of) { return float_to_half(table.row[static_cast<int>(reduction)](of.data(), n)); };
        const half_t top = folded(Reduction::max, others);
        for (size_t i = 0; i < others.size(); ++i) powers[i] = power(binary(Binary::sub, others[i], top));
        spaces[FIRST + 3][row] = top, spaces[FIRST + 4][row] = folded(Reduction::sum, powers), spaces[FIRST + 5][row] = folded(Reduction::max, moved);
    }
    for (int result = FIRST; result < FIRST + (is_forward ? 3 : 1); ++result)
        require(arrays[static_cast<size_t>(result)] == arrays[static_cast<size_t>(result + 3)], is_forward ? "a slice of a vocabulary" : "its gradient");
    if (is_forward && keeps) require(arrays[KEPT] == arrays[SCORES], "the scores of a slice of a vocabulary");
}

void check_transpose(int64_t rows, int64_t columns) {
    std::vector<half_t> x = numbers(static_cast<size_t>(rows * columns)), out(x.size());
    Copy step;
    step.x = {0, 0}, step.out = {1, 0};
    step.sizes = {columns, rows}, step.x_strides = {1, columns}, step.out_strides = {rows, 1};
    const std::vector<half_t*> spaces{x.data(), out.data()};
    Memory shared;
    step.run({spaces, shared});
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j)
            if (out[static_cast<size_t>(j * rows + i)] != x[static_cast<size_t>(i * columns + j)]) return require(false, "transpose");
}

void check_reductions() {
    std::vector<half_t> x = numbers(70 * 333), out(333);
    for (bool last : {false, true}) {
        Reduce step;
        step.x = {0, 0}, step.out = {1, 0}, step.reduction = Reduction::sum;
        step.sizes = {70, 333}, step.kept = {last, !last};
        const std::vector<half_t*> spaces{x.data(), out.data()};
        Memory shared;
        step.run({spaces, shared});
        for (size_t r = 0; r < (last ? 70u : 333u); ++r) {
            double sum = 0;
            for (size_t e = 0; e < (last ? 333u : 70u); ++e) sum += value(x[last ? r * 333 + e : e * 333 + r]);
            if (std::abs(value(out[r]) - sum) > 0x1p-11 * std::abs(sum) + 1e-4) return require(false, "reduce");
        }
    }
    std::vector<float> scratch(333);
    std::vector<half_t> soft(333);
    kernels().softmax_row(soft.data(), x.data(), 333, scratch.data());
    double sum = 0;
    for (int i = 0; i < 333; ++i) sum += std::exp(value(x[static_cast<size_t>(i)]));
    for (int i = 0; i < 333; ++i)
        require(distance(soft[static_cast<size_t>(i)], rounded(std::exp(value(x[static_cast<size_t>(i)])) / sum)) <= 1, "softmax");
}

void check_scan() {
    std::vector<half_t> x = numbers(1000);
    x[3] = 0x7c00, x[5] = 0x7e00, x[7] = 0, x[9] = 0x8000, x[11] = 0x7bff;
    Scan seen;
    kernels().scan(x.data(), 1000, &seen);
    require(seen.count == 1000 && seen.non_finite == 2 && seen.zeros >= 2 && std::isinf(seen.max_abs), "scan");
}

// Some 40,000 numbers, in several tasks, and a few left over; in double, a few roundings of fp32 away.
void check_optimizer() {
    constexpr int64_t SIZE = 40003;
    std::vector<float> param(SIZE), grad(SIZE), exp_avg(SIZE), exp_avg_sq(SIZE);
    for (size_t i = 0; i < SIZE; ++i) {
        param[i] = std::sin(static_cast<float>(i));
        grad[i] = std::cos(static_cast<float>(i) * 3);
        exp_avg[i] = grad[i] / 2;
        exp_avg_sq[i] = grad[i] * grad[i] / 3;
    }
    const std::vector<float> before = param, moment = exp_avg, square = exp_avg_sq;
    std::vector<half_t> staged(SIZE);
    const AdamW numbers{0.5f, 0.1f, 0.95f, 0.05f, 2.0f, 1e-8f, 0.01f, 0.999f};
    Numbers gradient;
    gradient.add({grad.data(), nullptr, SIZE, 1.0f});
    adamw({{param.data(), gradient, exp_avg.data(), exp_avg_sq.data(), staged.data()}}, numbers);
    for (size_t i = 0; i < SIZE; ++i) {
        const double g = 0.5 * static_cast<double>(grad[i]), m = moment[i] + 0.1 * (g - moment[i]), v = 0.95 * square[i] + 0.05 * g * g;
        const double want = 0.999 * before[i] - 0.01 * m / (std::sqrt(v) * 2 + 1e-8);
        require(std::abs(param[i] - want) < 1e-6 && std::abs(exp_avg[i] - m) < 1e-6 && std::abs(exp_avg_sq[i] - v) < 1e-6, "adamw");
        require(staged[i] == float_to_half(param[i]), "what adamw stages");
    }
}

// Rows longer and shorter than what is folded at once; the last is left out.
void check_loss(int64_t entries) {
    constexpr int64_t ROWS = 5, IGNORED = -100;
    std::vector<float> logits(static_cast<size_t>(ROWS * entries)), losses(ROWS), tops(ROWS), sums(ROWS), weights(ROWS, 0.25f);
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = 4 * std::sin(static_cast<float>(i) * 1.7f);
    const std::vector<int64_t> targets{0, entries - 1, entries / 2, 0, IGNORED};
    const std::vector<float> before = logits;
    const Scores scores{logits.data(), targets.data(), ROWS, entries, IGNORED};
    token_losses(scores, losses.data(), tops.data(), sums.data());
    token_gradients(scores, weights.data(), tops.data(), sums.data(), logits.data());
    for (int64_t row = 0; row < ROWS; ++row) {
        const float* from = before.data() + row * entries;
        const int64_t target = targets[static_cast<size_t>(row)];
        double sum = 0;
        for (int64_t i = 0; i < entries; ++i) sum += std::exp(static_cast<double>(from[i]));
        const double loss = target == IGNORED ? 0 : std::log(sum) - from[target];
        require(std::abs(losses[static_cast<size_t>(row)] - loss) < 1e-5, "token_losses");
        for (int64_t i = 0; i < entries; ++i) {
            const double want = target == IGNORED ? 0 : 0.25 * (std::exp(static_cast<double>(from[i])) / sum - (i == target));
            require(std::abs(logits[static_cast<size_t>(row * entries + i)] - want) < 1e-6, "token_gradients");
        }
    }
}

}  // namespace

int main() {
    check_conversions();
    check_unary();
    for (Arithmetic arithmetic : {Arithmetic::exact, Arithmetic::fast}) {
        if (arithmetic == Arithmetic::fast && !has_fast()) continue;
        for (bool transpose_x : {false, true})
            for (bool transpose_y : {false, true}) {
                check_matmul(arithmetic, 1, 1, 1, transpose_x, transpose_y);
                check_matmul(arithmetic, 37, 41, 129, transpose_x, transpose_y);
                check_matmul(arithmetic, 16, 24, 64, transpose_x, transpose_y);
            }
        check_matmul(arithmetic, 9, 20, 2100, false, false);
        check_attention(arithmetic, 130, 130, 20);
        check_attention(arithmetic, 100, 333, 12);
        for (bool is_forward : {true, false})
            for (bool keeps : {true, false}) check_vocabulary(arithmetic, is_forward, keeps, 37, 203);
    }
    check_transpose(65, 130);
    check_reductions();
    check_scan();
    check_optimizer();
    for (int64_t entries : {1, 7, 64, 517}) check_loss(entries);
    if (failures == 0) std::printf("all kernels agree%s\n", has_fast() ? ", those of bf16 too" : "");
    else std::printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
