// Scores of a slice of a vocabulary: the product, then everything else one row after the other, in two passes over a row that the nearest cache holds.
//
//     x y ──► scores ──► top, total, own of each row; the exponentials take the scores' place, or that of the last row's, where scores are kept
//     x y, or kept scores ──► the gradient, in the place of scores that are not kept
//
// At an entry that is no token's target the many ops add -0, or subtract +0, and change nothing; so they are left out there, and the few targets are
// computed one by one by the same kernels. Scores of -infinity, which the ops raise to -65504, give an exponential of 0 either way while what is
// taken from them is not as low; kept ones are raised. Reference: `parts`.
#include <atomic>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <vector>

#include "panels.h"
#include "pool.h"
#include "steps.h"

namespace torchane {
namespace {

// A task takes so many bytes of scores, and a row at least.
constexpr int64_t TASK_BYTES = 1 << 18;
constexpr float FARTHEST = 30000.0f;  // from 0, of what is taken from scores
constexpr half_t ONE = 0x3c00, MINUS_ONE = 0xbc00, LOWEST = 0xfbff, SIGN = 0x8000, INFINITE = 0x7c00;

bool is_moderate(half_t h) {
    const float x = half_to_float(h);
    return x > -FARTHEST && x < FARTHEST;
}

bool is_by_token(const Vocabulary& step) { return step.is_forward || step.keeps; }
int64_t tokens_of(const Vocabulary& step) { return is_by_token(step) ? step.scores.m : step.scores.n; }
int64_t entries_of(const Vocabulary& step) { return is_by_token(step) ? step.scores.n : step.scores.m; }
bool has_product(const Vocabulary& step) { return step.is_forward || !step.keeps; }

class Slice {
public:
    Slice(const Vocabulary& step, const Run& run) : step_(step), run_(run), table_(kernels(run.arithmetic)), n_(step.scores.n) {}

    // False where the ops one by one have to say what comes out.
    bool solve() {
        if (!read_targets() || !(step_.is_forward || is_plain())) return false;
        if (has_product(step_)) step_.scores.run(run_);
        const int64_t m = step_.scores.m, rows = std::max<int64_t>(1, TASK_BYTES / (n_ * static_cast<int64_t>(sizeof(half_t))));
        std::atomic<bool> holds{true};
        parallel(ceil_div(m, rows), [&](int64_t task, int) {
            const int64_t begin = task * rows, end = std::min(m, begin + rows);
            if (!is_by_token(step_)) turned_gradients(begin, end);
            else if (!step_.is_forward) gradients(begin, end);
            else if (!read(begin, end)) holds.store(false, std::memory_order_relaxed);
        });
        return holds.load();
    }

private:
    // The entry of each token, -1 for none in this slice; false for a code that says neither.
    bool read_targets() {
        const half_t* code = run_.at(step_.code);
        const int64_t tokens = tokens_of(step_);
        targets_.assign(static_cast<size_t>(tokens), -1);
        for (int64_t t = 0; t < tokens; ++t) {
            int64_t entry = 0, signs = 0, zeros = 0;
            for (int64_t bit = 0; bit < step_.code_size; ++bit) {
                const half_t sign = code[bit * tokens + t];
                entry |= static_cast<int64_t>(sign == ONE) << bit;
                signs += sign == ONE || sign == MINUS_ONE;
                zeros += (sign & ~SIGN) == 0;
            }
            if (signs != step_.code_size && zeros != step_.code_size) return false;
            if (signs == step_.code_size && entry < entries_of(step_)) targets_[static_cast<size_t>(t)] = entry;
        }
        return true;
    }

    // Nothing that is taken from scores is far from 0, and 0 times `rest` is +0.
    bool is_plain() const {
        const half_t *taken = run_.at(step_.taken), *rest = run_.at(step_.rest);
        for (int64_t t = 0; t < tokens_of(step_); ++t)
            if (!is_moderate(taken[t]) || rest[t] >= INFINITE) return false;
        return true;
    }

    // What a loss needs of the rows of these tokens.
    bool read(int64_t begin, int64_t end) const {
        half_t *tops = run_.at(step_.top), *totals = run_.at(step_.total), *owns = run_.at(step_.own);
        half_t* powers = step_.keeps ? thread_memory().take<half_t>(static_cast<size_t>(n_) * sizeof(half_t)) : nullptr;
        for (int64_t t = begin; t < end; ++t) {
            half_t* row = run_.at(step_.scores.out) + t * n_;
            const int64_t target = targets_[static_cast<size_t>(t)];
            half_t score = 0;
            if (target >= 0) {
                score = binary(Binary::max, row[target], LOWEST);
                row[target] = binary(Binary::add, score, step_.left_out);
            }
            const half_t top = half_of(table_.row[static_cast<int>(Reduction::max)](row, n_));
            if (!is_moderate(top)) return false;
            float least;
            tops[t] = top;
            totals[t] = half_of(table_.sum_of_powers(step_.keeps ? powers : row, row, n_, top, &least));
            // Rounding keeps the order, so that the largest of all scores, moved, is the largest of the moved ones.
            owns[t] = binary(Binary::add, top, step_.left_out);
            if (target >= 0) owns[t] = binary(Binary::max, owns[t], binary(Binary::add, score, 0));
            if (!step_.keeps) continue;
            if (target >= 0) row[target] = score;
            if (std::isinf(least)) table_.binary[static_cast<int>(Binary::max)][static_cast<int>(Form::vector_scalar)](row, row, &LOWEST, n_);
        }
        return true;
    }

    // Of the kept scores of these tokens.
    void gradients(int64_t begin, int64_t end) const {
        const half_t *taken = run_.at(step_.taken), *grad = run_.at(step_.grad);
        for (int64_t t = begin; t < end; ++t) {
            const half_t* row = run_.at(step_.kept) + t * n_;
            half_t* out = run_.at(step_.out) + t * n_;
            const int64_t target = targets_[static_cast<size_t>(t)];
            table_.powers_times_one(out, row, taken[t], grad[t], n_);
            if (target >= 0) out[target] = at_target(row[target], t);
        }
    }

    // Of the scores of these entries, in their place.
    void turned_gradients(int64_t begin, int64_t end) const {
        half_t* scores = run_.at(step_.out);
        struct Target {
            int64_t place;
            half_t value;
        };
        std::vector<Target> found;
        for (int64_t t = 0; t < n_; ++t) {
            const int64_t entry = targets_[static_cast<size_t>(t)], place = entry * n_ + t;
            if (entry >= begin && entry < end) found.push_back({place, at_target(binary(Binary::max, scores[place], LOWEST), t)});
        }
        for (int64_t entry = begin; entry < end; ++entry) table_.powers_times(scores + entry * n_, run_.at(step_.taken), run_.at(step_.grad), n_);
        for (const Target& one : found) scores[one.place] = one.value;
    }

    half_t at_target(half_t score, int64_t t) const {
        const half_t taken = run_.at(step_.taken)[t], rest = run_.at(step_.rest)[t], grad = run_.at(step_.grad)[t];
        const half_t power = exp(binary(Binary::sub, binary(Binary::add, score, step_.left_out), taken));
        return binary(Binary::mul, binary(Binary::sub, power, rest), grad);
    }

    // One op on numbers, by the kernel of rows.
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
    half_t half_of(float number) const {
        half_t h;
        table_.narrow(&h, &number, 1, 1.0f);
        return h;
    }

    const Vocabulary& step_;
    const Run& run_;
    const Kernels& table_;
    const int64_t n_;
    std::vector<int64_t> targets_;
};

}  // namespace

void Vocabulary::run(const Run& run) const {
    if (Slice(*this, run).solve()) return;
    for (const auto& part : parts) part->run(run);
}

std::vector<Extent> Vocabulary::extents() const {
    const int64_t tokens = tokens_of(*this), all = scores.m * scores.n;
    std::vector<Extent> found{{code, code_size * tokens - 1}};
    if (has_product(*this)) found = scores.extents(), found.push_back({code, code_size * tokens - 1});
    if (keeps) found.push_back({kept, all - 1});
    if (is_forward) {
        for (Place place : {top, total, own}) found.push_back({place, tokens - 1});
    } else {
        for (Place place : {taken, rest, grad}) found.push_back({place, tokens - 1});
        found.push_back({out, all - 1});
    }
    return found;
}

void Vocabulary::check() const {
    if (scores.m < 1 || scores.n < 1 || (has_product(*this) && scores.k < 1)) throw std::invalid_argument("vocabulary: no scores");
    if (code_size < 1 || code_size > 62 || entries_of(*this) > int64_t{1} << code_size)
        throw std::invalid_argument("vocabulary: a code that does not tell all entries from each other");
    if (!(half_to_float(left_out) < 0) || left_out >= (SIGN | INFINITE)) throw std::invalid_argument("vocabulary: targets are moved down, by a number");
    if (parts.empty()) throw std::invalid_argument("vocabulary: without the ops that it stands for");
}

}  // namespace torchane
