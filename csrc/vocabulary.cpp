// Scores of a slice of a vocabulary a few rows at a time: they are in the second-level cache when they are read, and none but a gradient reaches memory.
//
//     rows of the left operand x the right one, packed once for all ──► rows of scores ──► top, total, own     or the gradient, in place
//
// At an entry that is no token's target the many ops add -0, or subtract +0, and change nothing; so they are left out there, and the few targets are
// computed one by one by the same kernels. Scores of -infinity, which the ops raise to -65504, give an exponential of 0 either way while what is
// taken from them is not as low. Reference: `parts`.
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "panels.h"
#include "pool.h"
#include "steps.h"

namespace torchane {
namespace {

// Rows of scores that are worked on at once take so many bytes at most: with the panels they fit the second-level cache.
constexpr int64_t BLOCK_BYTES = 1 << 19;
constexpr int64_t LONGEST = 2048;  // longer sums are cut into pieces by a product alone
constexpr float FARTHEST = 30000.0f;  // from 0, of what is taken from scores
constexpr half_t ONE = 0x3c00, MINUS_ONE = 0xbc00, LOWEST = 0xfbff, SIGN = 0x8000, INFINITE = 0x7c00;

// One op on numbers, by the kernel of rows.
class Numbers {
public:
    explicit Numbers(const Kernels& table) : table_(table) {}
    half_t binary(Binary op, half_t a, half_t b) const {
        half_t d;
        table_.binary[static_cast<int>(op)][static_cast<int>(Form::vector_vector)](&d, &a, &b, 1);
        return d;
    }
    half_t exp(half_t a) const {
        half_t d;
        table_.unary[static_cast<int>(Unary::exp)](&d, &a, 1);
        return d;
    }

private:
    const Kernels& table_;
};

bool is_moderate(half_t h) {
    const float x = half_to_float(h);
    return x > -FARTHEST && x < FARTHEST;
}

class Slice {
public:
    Slice(const Vocabulary& step, const Run& run)
        : step_(step), product_(step.scores), run_(run), table_(kernels(run.arithmetic)),
          kernel_(kernels(product_.exact && run.arithmetic == Arithmetic::fast ? Arithmetic::exact : run.arithmetic).matmul), numbers_(table_),
          panels_a_(kernel_, true, product_.m, product_.k), panels_b_(kernel_, false, product_.n, product_.k),
          rows_(std::max<int64_t>(1, BLOCK_BYTES / (product_.n * static_cast<int64_t>(sizeof(half_t)) * kernel_.rows)) * kernel_.rows) {}

    // False where the ops one by one have to say what comes out.
    bool solve() {
        if (kernel_.needs_finite || !read_targets() || !(step_.is_forward || is_plain())) return false;
        const Side a{run_.at(product_.x), product_.transpose_x ? product_.m : product_.k, !product_.transpose_x, product_.m};
        const Side b{run_.at(product_.y), product_.transpose_y ? product_.k : product_.n, product_.transpose_y, product_.n};
        char* packed = run_.shared.take<char>(static_cast<size_t>(panels_b_.size()));
        parallel(panels_b_.count, [&](int64_t j, int) { panels_b_.pack(packed + j * panels_b_.bytes, b, j, 0, product_.k); });
        std::atomic<bool> holds{true};
        parallel(ceil_div(product_.m, rows_), [&](int64_t task, int) {
            if (holds.load(std::memory_order_relaxed) && !block(a, packed, task * rows_)) holds.store(false, std::memory_order_relaxed);
        });
        return holds.load();
    }

private:
    int64_t tokens() const { return step_.is_forward ? product_.m : product_.n; }
    int64_t entries() const { return step_.is_forward ? product_.n : product_.m; }

    // The entry of each token, -1 for none in this slice; false for a code that says neither.
    bool read_targets() {
        const half_t* code = run_.at(step_.code);
        targets_.assign(static_cast<size_t>(tokens()), -1);
        for (int64_t t = 0; t < tokens(); ++t) {
            int64_t entry = 0, signs = 0, zeros = 0;
            for (int64_t bit = 0; bit < step_.code_size; ++bit) {
                const half_t sign = code[bit * tokens() + t];
                entry |= static_cast<int64_t>(sign == ONE) << bit;
                signs += sign == ONE || sign == MINUS_ONE;
                zeros += (sign & ~SIGN) == 0;
            }
            if (signs != step_.code_size && zeros != step_.code_size) return false;
            if (signs == step_.code_size && entry < entries()) targets_[static_cast<size_t>(t)] = entry;
        }
        return true;
    }

    // Nothing that is taken from scores is far from 0, and 0 times `rest` is +0.
    bool is_plain() const {
        const half_t *taken = run_.at(step_.taken), *rest = run_.at(step_.rest);
        for (int64_t t = 0; t < tokens(); ++t)
            if (!is_moderate(taken[t]) || rest[t] >= INFINITE) return false;
        return true;
    }

    bool block(const Side& a, const char* packed_b, int64_t first) const {
        const int64_t n = product_.n, count = std::min(rows_, product_.m - first), panels = ceil_div(count, kernel_.rows);
        const int64_t tile = kernel_.sum_bytes * kernel_.rows * kernel_.columns;
        const int64_t rows_bytes = step_.is_forward ? round_up(count * n * static_cast<int64_t>(sizeof(half_t)), 64) : 0;
        char* memory = thread_memory().take<char>(static_cast<size_t>(tile + panels * panels_a_.bytes + rows_bytes));
        float* sums = reinterpret_cast<float*>(memory);
        char* packed_a = memory + tile;
        half_t* rows = step_.is_forward ? reinterpret_cast<half_t*>(packed_a + panels * panels_a_.bytes) : run_.at(step_.out) + first * n;
        for (int64_t i = 0; i < panels; ++i) panels_a_.pack(packed_a + i * panels_a_.bytes, a, first / kernel_.rows + i, 0, product_.k);
        kernel_.begin();
        for (int64_t j = 0; j < panels_b_.count; ++j)
            for (int64_t i = 0; i < panels; ++i) {
                const int64_t row = i * kernel_.rows, column = j * kernel_.columns, height = std::min<int64_t>(kernel_.rows, count - row);
                multiply_tile(kernel_, packed_a + i * panels_a_.bytes, packed_b + j * panels_b_.bytes, round_up(product_.k, kernel_.depth), sums,
                              rows + row * n + column, n, height, std::min<int64_t>(kernel_.columns, n - column));
            }
        kernel_.end();
        return step_.is_forward ? forward(rows, first, count) : backward(rows, first, count);
    }

    bool forward(half_t* rows, int64_t first, int64_t count) const {
        const int64_t n = product_.n;
        half_t *tops = run_.at(step_.top), *totals = run_.at(step_.total), *owns = run_.at(step_.own);
        for (int64_t t = first; t < first + count; ++t, rows += n) {
            const int64_t target = targets_[static_cast<size_t>(t)];
            half_t score = 0;
            if (target >= 0) {
                score = numbers_.binary(Binary::max, rows[target], LOWEST);
                rows[target] = numbers_.binary(Binary::add, score, step_.left_out);
            }
            half_t top = half_of(table_.row[static_cast<int>(Reduction::max)](rows, n));
            if (!is_moderate(top)) return false;
            tops[t] = top;
            totals[t] = half_of(table_.sum_of_powers(rows, n, top));
            // Rounding keeps the order, so that the largest of all scores, moved, is the largest of the moved ones.
            owns[t] = numbers_.binary(Binary::add, top, step_.left_out);
            if (target >= 0) owns[t] = numbers_.binary(Binary::max, owns[t], numbers_.binary(Binary::add, score, 0));
        }
        return true;
    }

    bool backward(half_t* rows, int64_t first, int64_t count) const {
        const int64_t n = product_.n;
        const half_t *taken = run_.at(step_.taken), *rest = run_.at(step_.rest), *grad = run_.at(step_.grad);
        struct Target {
            int64_t place;
            half_t value;
        };
        std::vector<Target> found;
        for (int64_t t = 0; t < n; ++t) {
            const int64_t row = targets_[static_cast<size_t>(t)] - first;
            if (row < 0 || row >= count) continue;
            const half_t score = numbers_.binary(Binary::add, numbers_.binary(Binary::max, rows[row * n + t], LOWEST), step_.left_out);
            const half_t power = numbers_.exp(numbers_.binary(Binary::sub, score, taken[t]));
            found.push_back({row * n + t, numbers_.binary(Binary::mul, numbers_.binary(Binary::sub, power, rest[t]), grad[t])});
        }
        for (int64_t row = 0; row < count; ++row) table_.powers_times(rows + row * n, taken, grad, n);
        for (const Target& one : found) rows[one.place] = one.value;
        return true;
    }

    half_t half_of(float number) const {
        half_t h;
        table_.narrow(&h, &number, 1, 1.0f);
        return h;
    }

    const Vocabulary& step_;
    const Matmul& product_;
    const Run& run_;
    const Kernels& table_;
    const MatmulKernel& kernel_;
    const Numbers numbers_;
    const Panels panels_a_, panels_b_;
    const int64_t rows_;
    std::vector<int64_t> targets_;
};

}  // namespace

void Vocabulary::run(const Run& run) const {
    if (Slice(*this, run).solve()) return;
    for (const auto& part : parts) part->run(run);
}

std::vector<Extent> Vocabulary::extents() const {
    const int64_t tokens = is_forward ? scores.m : scores.n;
    std::vector<Extent> found{{scores.x, scores.m * scores.k - 1}, {scores.y, scores.k * scores.n - 1}, {code, code_size * tokens - 1}};
    if (is_forward) {
        for (Place place : {top, total, own}) found.push_back({place, tokens - 1});
    } else {
        for (Place place : {taken, rest, grad}) found.push_back({place, tokens - 1});
        found.push_back({out, scores.m * scores.n - 1});
    }
    return found;
}

void Vocabulary::check() const {
    if (scores.k < 1 || scores.k > LONGEST) throw std::invalid_argument("vocabulary: a sum that a product cuts into pieces");
    if (code_size < 1 || code_size > 62 || (is_forward ? scores.n : scores.m) > int64_t{1} << code_size)
        throw std::invalid_argument("vocabulary: a code that does not tell all entries from each other");
    if (!(half_to_float(left_out) < 0) || left_out >= (SIGN | INFINITE)) throw std::invalid_argument("vocabulary: targets are moved down, by a number");
    if (parts.empty()) throw std::invalid_argument("vocabulary: without the ops that it stands for");
}

}  // namespace torchane
