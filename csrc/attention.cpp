// Attention a block of queries at a time: whole rows of scores, so that a softmax needs nothing of other blocks, and no (m, n) array but P where it is kept.
//
//     for each block of queries      scores = x y, + mask, softmax of each row ──► P       G = x y, S = P (G - sum of a row of G P)
//         readers that sum over keys       write their rows
//         readers that sum over queries    add to sums in fp32, written after the last block
//
// Sums take their products in the order of k, whatever the blocks, so each number has the bits of the products alone. Columns from `live` on, which a
// causal mask makes 0 for the whole block, are left out where norms prove that they are 0 and that whatever meets them is finite: a product with
// 0 adds nothing to a sum that is never -0. Reference: the same steps one after the other.
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "panels.h"
#include "pool.h"
#include "steps.h"

namespace torchane {
namespace {

constexpr int64_t ROWS = Attention::ROWS;
constexpr int64_t GRAIN = 64;  // columns: panels of every kernel, and the running values of a row's sum
// More than a norm may be off, through bf16's rounding of both factors (1.008) and fp32's sums.
constexpr float SLACK = 1.02f;
constexpr float LARGEST = 65504.0f;
// e^x is 0 below -87.3; two numbers of fp16 are rounded by up to 16 each.
constexpr float UNDERFLOW_GAP = 128.0f;

int64_t offset_of(int64_t index, const Sizes& batch, const Sizes& strides) {
    int64_t offset = 0;
    for (size_t axis = batch.size(); axis-- > 0; index /= batch[axis]) offset += index % batch[axis] * strides[axis];
    return offset;
}

Side left_of(const Matmul& p, const Run& run, const Sizes& batch, int64_t index) {
    return {run.at(p.x) + offset_of(index, batch, p.x_strides), p.transpose_x ? p.m : p.k, !p.transpose_x, p.m};
}

Side right_of(const Matmul& p, const Run& run, const Sizes& batch, int64_t index) {
    return {run.at(p.y) + offset_of(index, batch, p.y_strides), p.transpose_y ? p.k : p.n, p.transpose_y, p.n};
}

// The largest norm of a row of A, or a column of B; NaN or infinity where one holds such.
float largest_norm(const Kernels& table, const Side& side, int64_t k, float* squares, float* wide) {
    const int64_t vectors = side.along_k ? side.outer : k, length = side.along_k ? k : side.outer;
    float largest = 0.0f;
    std::fill(squares, squares + length, 0.0f);
    for (int64_t v = 0; v < vectors; ++v) {
        table.widen(wide, side.data + v * side.stride, length, 1.0f);
        if (side.along_k) {
            const float sum = static_cast<float>(table.sum_of_squares(wide, length));
            largest = sum > largest || sum != sum ? sum : largest;
            if (sum != sum) break;
        } else {
            for (int64_t i = 0; i < length; ++i) squares[i] += wide[i] * wide[i];
        }
    }
    if (!side.along_k)
        for (int64_t i = 0; i < length; ++i) largest = squares[i] > largest || squares[i] != squares[i] ? squares[i] : largest;
    return std::sqrt(largest);
}

bool is_finite(const Kernels& table, const Side& side, int64_t k) {
    Scan seen;
    table.scan(side.data, side.outer * k, &seen);
    return seen.non_finite == 0;
}

// The end of a row's last number that is not +0, at least `least`.
int64_t end_of(const half_t* row, int64_t least, int64_t n) {
    for (; n >= least + 32; n -= 32) {
        uint64_t words[8], any = 0;
        std::memcpy(words, row + n - 32, sizeof words);
        for (uint64_t word : words) any |= word;
        if (any != 0) break;
    }
    while (n > least && row[n - 1] == 0) --n;
    return n;
}

// Hands out pieces of one allocation; from null, only counts.
class Room {
public:
    explicit Room(char* begin) : begin_(begin) {}
    template <typename T>
    T* take(int64_t count) {
        char* here = begin_ + used_;
        used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
        return reinterpret_cast<T*>(begin_ == nullptr ? nullptr : here);
    }
    int64_t used() const { return used_; }

private:
    char* begin_;
    int64_t used_ = 0;
};

// One product of the batch.
class Head {
public:
    Head(const Attention& step, const Run& run, int64_t index)
        : step_(step), run_(run), index_(index), table_(kernels(run.arithmetic)), kernel_(table_.matmul), m_(step.m), n_(step.n),
          row_(round_up(step.n, 32) + 32) {
        Room count(nullptr);
        place(count);
        Room room(thread_memory().take<char>(static_cast<size_t>(count.used())));
        place(room);
    }

    void solve() {
        kernel_.begin();
        if (step_.has_probabilities) pack_keys(step_.probabilities, keys_);
        if (step_.has_gradient) pack_keys(step_.gradient, values_);
        for (size_t r = 0; r < step_.readers.size(); ++r) prepare(step_.readers[r], reading_[r]);
        look_at_operands();
        for (int64_t begin = 0; begin < m_; begin += ROWS) block(begin, std::min(m_, begin + ROWS) - begin);
        for (size_t r = 0; r < step_.readers.size(); ++r)
            if (!sums_over_keys(step_.readers[r])) write_sums(step_.readers[r], reading_[r]);
        kernel_.end();
    }

private:
    // What a reader keeps: the panels of its other operand, whole where it sums over keys; else sums, and which of them have begun.
    struct Reading {
        char* panels;
        float* sums;
        bool* begun;
    };

    static bool sums_over_keys(const Attention::Reader& reader) {
        return reader.is_left ? !reader.product.transpose_x : reader.product.transpose_y;
    }
    Side other_of(const Attention::Reader& reader) const {
        return reader.is_left ? right_of(reader.product, run_, step_.batch, index_) : left_of(reader.product, run_, step_.batch, index_);
    }
    Panels others(const Attention::Reader& reader) const {
        return {kernel_, !reader.is_left, reader.is_left ? reader.product.n : reader.product.m, sums_over_keys(reader) ? n_ : ROWS};
    }
    // Of P or S as this reader takes them: a block of rows, or columns of one.
    Panels own(const Attention::Reader& reader) const {
        return sums_over_keys(reader) ? Panels(kernel_, reader.is_left, ROWS, n_) : Panels(kernel_, reader.is_left, n_, ROWS);
    }
    int64_t tile() const { return kernel_.sum_bytes / static_cast<int64_t>(sizeof(float)) * kernel_.rows * kernel_.columns; }

    void place(Room& room) {
        int64_t rows_bytes = 0, packed = 0;
        const auto product_of = [&](const Matmul& p, char*& panels) {
            panels = room.take<char>(Panels(kernel_, false, n_, p.k).size());
            rows_bytes = std::max(rows_bytes, Panels(kernel_, true, ROWS, p.k).size());
        };
        if (step_.has_probabilities) product_of(step_.probabilities, keys_);
        if (step_.has_gradient) product_of(step_.gradient, values_);
        reading_.resize(step_.readers.size());
        for (size_t r = 0; r < step_.readers.size(); ++r) {
            const Attention::Reader& reader = step_.readers[r];
            const Panels other = others(reader), mine = own(reader);
            reading_[r].panels = room.take<char>(other.size());
            packed = std::max(packed, sums_over_keys(reader) ? mine.size() : mine.bytes);
            if (sums_over_keys(reader)) continue;
            reading_[r].sums = room.take<float>(mine.count * other.count * tile());
            reading_[r].begun = room.take<bool>(mine.count);
        }
        rows_ = room.take<char>(rows_bytes);
        packed_ = room.take<char>(packed);
        tile_ = room.take<float>(tile());
        scores_ = room.take<half_t>(step_.has_probabilities ? ROWS * row_ : 0);
        gradient_ = room.take<half_t>(step_.has_gradient ? ROWS * row_ : 0);
        const int64_t longest = std::max({row_, m_, step_.has_probabilities ? step_.probabilities.k : 0, step_.has_gradient ? step_.gradient.k : 0});
        floats_ = room.take<float>(longest);
        more_floats_ = room.take<float>(longest);
    }

    void pack_keys(const Matmul& p, char* to) {
        Panels(kernel_, false, n_, p.k).pack_all(to, right_of(p, run_, step_.batch, index_), 0, p.k);
    }

    void prepare(const Attention::Reader& reader, Reading& reading) {
        if (sums_over_keys(reader)) others(reader).pack_all(reading.panels, other_of(reader), 0, n_);
        else std::fill(reading.begun, reading.begun + own(reader).count, false);
    }

    // Whether there may be columns that do not count.
    bool may_leave_out() const {
        if (!step_.has_probabilities) return n_ > GRAIN;
        return std::any_of(step_.live.begin(), step_.live.end(), [&](int64_t columns) { return round_up(columns, GRAIN) < n_; });
    }

    // What may be left out rests on these.
    void look_at_operands() {
        if (!may_leave_out()) return;
        const auto bound = [&](const Matmul& p) {
            return SLACK * largest_norm(table_, left_of(p, run_, step_.batch, index_), p.k, floats_, more_floats_) *
                   largest_norm(table_, right_of(p, run_, step_.batch, index_), p.k, floats_, more_floats_);
        };
        others_are_finite_ = true;
        for (const Attention::Reader& reader : step_.readers)
            others_are_finite_ &= is_finite(table_, other_of(reader), sums_over_keys(reader) ? n_ : m_);
        if (!others_are_finite_) return;
        if (step_.has_probabilities) largest_score_ = bound(step_.probabilities);
        if (step_.has_gradient) largest_gradient_ = bound(step_.gradient);
    }

    half_t* probabilities(int64_t row, int64_t begin) const {
        return step_.keeps ? run_.at(step_.p) + (index_ * m_ + row) * n_ : scores_ + (row - begin) * row_;
    }

    // How many columns count in this block: the others hold +0 in P, and nothing that is not finite meets them.
    int64_t live(int64_t begin, int64_t rows) const {
        if (!others_are_finite_) return n_;
        int64_t end = 0;
        if (step_.has_probabilities) {
            const size_t block = static_cast<size_t>(begin / ROWS);
            if (!(largest_score_ < LARGEST && step_.gap[block] - 2 * largest_score_ > UNDERFLOW_GAP)) return n_;
            end = step_.live[block];
        } else {
            for (int64_t r = begin; r < begin + rows; ++r) end = std::max(end, end_of(probabilities(r, begin), end, n_));
        }
        return std::min(n_, round_up(std::max<int64_t>(end, 1), GRAIN));
    }

    void block(int64_t begin, int64_t rows) {
        int64_t width = live(begin, rows);
        if (step_.has_probabilities) find_probabilities(begin, rows, width);
        if (step_.has_gradient) {
            if (width < n_ && !gradients_are_finite(begin, rows, width)) {
                // Without a proof every column counts: those of P are +0 all the same.
                if (!step_.keeps)
                    for (int64_t r = begin; r < begin + rows; ++r) clear(probabilities(r, begin), width);
                width = n_;
            }
            find_gradients(begin, rows, width);
        }
        fill_panels(rows, width);
        for (size_t r = 0; r < step_.readers.size(); ++r) {
            const Attention::Reader& reader = step_.readers[r];
            const half_t* from = reader.of_gradient ? gradient_ : probabilities(begin, begin);
            const Side rows_of{from, reader.of_gradient || !step_.keeps ? row_ : n_, sums_over_keys(reader), sums_over_keys(reader) ? rows : n_};
            if (sums_over_keys(reader)) write_rows(reader, reading_[r], rows_of, begin, width);
            else add_rows(reader, reading_[r], rows_of, begin, rows, width);
        }
    }

    // A panel may reach beyond the columns that were computed.
    void fill_panels(int64_t rows, int64_t width) const {
        const size_t beyond = static_cast<size_t>(std::min(n_, width + std::max(kernel_.rows, kernel_.columns)) - width) * sizeof(half_t);
        for (int64_t r = 0; r < rows && beyond > 0; ++r) {
            if (!step_.keeps) std::memset(scores_ + r * row_ + width, 0, beyond);
            if (step_.has_gradient) std::memset(gradient_ + r * row_ + width, 0, beyond);
        }
    }

    void clear(half_t* row, int64_t from) const { std::memset(row + from, 0, static_cast<size_t>(n_ - from) * sizeof(half_t)); }

    // (rows, width) of a product of these queries with the keys.
    void multiply(const Matmul& p, const char* keys, half_t* to, int64_t begin, int64_t rows, int64_t width) {
        const Panels a(kernel_, true, ROWS, p.k), b(kernel_, false, n_, p.k);
        Side queries = left_of(p, run_, step_.batch, index_);
        queries.data = queries.at(begin, 0);
        queries.outer = rows;
        a.pack_all(rows_, queries, 0, p.k);
        const int64_t depth = round_up(p.k, kernel_.depth);
        for (int64_t j = 0; j * b.width < width; ++j)
            for (int64_t i = 0; i * a.width < rows; ++i)
                multiply_tile(rows_ + i * a.bytes, keys + j * b.bytes, depth, to + i * a.width * row_ + j * b.width, row_, rows - i * a.width,
                              width - j * b.width);
    }

    void multiply_tile(const char* a, const char* b, int64_t depth, half_t* to, int64_t stride, int64_t rows, int64_t columns) {
        torchane::multiply_tile(kernel_, a, b, depth, tile_, to, stride, std::min<int64_t>(kernel_.rows, rows), std::min<int64_t>(kernel_.columns, columns));
    }

    void find_probabilities(int64_t begin, int64_t rows, int64_t width) {
        const auto add = table_.binary[static_cast<int>(Binary::add)][static_cast<int>(Form::vector_vector)];
        multiply(step_.probabilities, keys_, scores_, begin, rows, width);
        const half_t* mask = step_.has_mask ? run_.at(step_.mask) + offset_of(index_, step_.batch, step_.mask_strides) : nullptr;
        for (int64_t r = begin; r < begin + rows; ++r) {
            half_t* scores = scores_ + (r - begin) * row_;
            half_t* p = probabilities(r, begin);
            if (mask != nullptr) add(scores, scores, mask + r * step_.mask_row, width);
            table_.softmax_row(p, scores, width, floats_);
            if (step_.keeps) clear(p, width);
        }
    }

    // G, the sum of a row of G P, and their difference, where the columns are not computed: |G| is bounded by norms, the sum by that and the sum of P.
    bool gradients_are_finite(int64_t begin, int64_t rows, int64_t width) const {
        float most = 1.0f;
        for (int64_t r = begin; r < begin + rows; ++r) {
            const float sum = table_.row[static_cast<int>(Reduction::sum)](probabilities(r, begin), width);
            if (!(sum < LARGEST)) return false;
            most = std::max(most, sum);
        }
        return largest_gradient_ * (1.0f + SLACK * most) < LARGEST / SLACK;
    }

    void find_gradients(int64_t begin, int64_t rows, int64_t width) {
        multiply(step_.gradient, values_, gradient_, begin, rows, width);
        for (int64_t r = begin; r < begin + rows; ++r) table_.softmax_gradient_row(gradient_ + (r - begin) * row_, probabilities(r, begin), width);
    }

    // A reader that sums over keys: these rows of its result, or these columns.
    void write_rows(const Attention::Reader& reader, const Reading& reading, const Side& rows, int64_t begin, int64_t width) {
        const Matmul& p = reader.product;
        const Panels mine = own(reader), other = others(reader);
        mine.pack_all(packed_, rows, 0, width);
        const int64_t depth = round_up(width, kernel_.depth), outer = reader.is_left ? p.n : p.m;
        half_t* out = run_.at(p.out) + index_ * p.m * p.n;
        for (int64_t i = 0; i * mine.width < rows.outer; ++i)
            for (int64_t j = 0; j * other.width < outer; ++j) {
                const char* own_panel = packed_ + i * mine.bytes;
                const char* other_panel = reading.panels + j * other.bytes;
                const int64_t own_left = rows.outer - i * mine.width, other_left = outer - j * other.width;
                const int64_t row = reader.is_left ? begin + i * mine.width : j * other.width, column = reader.is_left ? j * other.width : begin + i * mine.width;
                half_t* to = out + row * p.n + column;
                if (reader.is_left) multiply_tile(own_panel, other_panel, depth, to, p.n, own_left, other_left);
                else multiply_tile(other_panel, own_panel, depth, to, p.n, other_left, own_left);
            }
    }

    // A reader that sums over queries: what these add to the columns that count.
    void add_rows(const Attention::Reader& reader, Reading& reading, const Side& rows, int64_t begin, int64_t count, int64_t width) {
        const Panels mine = own(reader), other = others(reader);
        const int64_t depth = round_up(count, kernel_.depth);
        other.pack_all(reading.panels, other_of(reader), begin, count);
        for (int64_t i = 0; i * mine.width < width; ++i) {
            mine.pack(packed_, rows, i, 0, count);
            for (int64_t j = 0; j < other.count; ++j) {
                const char* other_panel = reading.panels + j * other.bytes;
                float* sums = reading.sums + (i * other.count + j) * tile();
                const int64_t left = reader.is_left ? n_ - i * mine.width : reader.product.m - j * other.width;
                kernel_.multiply(reader.is_left ? packed_ : other_panel, reader.is_left ? other_panel : packed_, depth, sums, reading.begun[i],
                                 std::min<int64_t>(kernel_.rows, left));
            }
            reading.begun[i] = true;
        }
    }

    void write_sums(const Attention::Reader& reader, const Reading& reading) {
        const Matmul& p = reader.product;
        const Panels mine = own(reader), other = others(reader);
        half_t* out = run_.at(p.out) + index_ * p.m * p.n;
        for (int64_t i = 0; i < mine.count; ++i)
            for (int64_t j = 0; j < other.count; ++j) {
                float* sums = reading.sums + (i * other.count + j) * tile();
                if (!reading.begun[i]) std::fill(sums, sums + tile(), 0.0f);
                const int64_t row = (reader.is_left ? i : j) * kernel_.rows, column = (reader.is_left ? j : i) * kernel_.columns;
                kernel_.store(out + row * p.n + column, p.n, sums, std::min<int64_t>(kernel_.rows, p.m - row),
                              std::min<int64_t>(kernel_.columns, p.n - column));
            }
    }

    const Attention& step_;
    const Run& run_;
    const int64_t index_;
    const Kernels& table_;
    const MatmulKernel& kernel_;
    const int64_t m_, n_, row_;
    char *keys_ = nullptr, *values_ = nullptr, *rows_ = nullptr, *packed_ = nullptr;
    float *tile_ = nullptr, *floats_ = nullptr, *more_floats_ = nullptr;
    half_t *scores_ = nullptr, *gradient_ = nullptr;
    std::vector<Reading> reading_;
    bool others_are_finite_ = false;
    float largest_score_ = 0.0f, largest_gradient_ = 0.0f;
};

}  // namespace

void Attention::run(const Run& run) const {
    if (kernels(run.arithmetic).matmul.needs_finite)
        throw std::invalid_argument("attention in one step was loaded for other kernels: those in use need finite operands");
    parallel(product(batch), [&](int64_t index, int) { Head(*this, run, index).solve(); });
}

std::vector<Extent> Attention::extents() const {
    std::vector<Extent> found;
    const auto last = [&](const Sizes& strides) {
        int64_t sum = 0;
        for (size_t axis = 0; axis < batch.size(); ++axis) sum += (batch[axis] - 1) * strides[axis];
        return sum;
    };
    const auto operands = [&](const Matmul& p) {
        found.push_back({p.x, last(p.x_strides) + p.m * p.k - 1});
        found.push_back({p.y, last(p.y_strides) + p.k * p.n - 1});
    };
    if (has_probabilities) operands(probabilities);
    if (has_gradient) operands(gradient);
    if (has_mask) found.push_back({mask, last(mask_strides) + (m - 1) * mask_row + n - 1});
    if (keeps) found.push_back({p, product(batch) * m * n - 1});
    for (const Reader& reader : readers) {
        const Matmul& one = reader.product;
        if (reader.is_left) found.push_back({one.y, last(one.y_strides) + one.k * one.n - 1});
        else found.push_back({one.x, last(one.x_strides) + one.m * one.k - 1});
        found.push_back({one.out, product(batch) * one.m * one.n - 1});
    }
    return found;
}

void Attention::check() const {
    const auto require = [](bool holds, const char* what) {
        if (!holds) throw std::invalid_argument(what);
    };
    require(m > 0 && n > 0 && product(batch) > 0, "attention: no scores");
    for (int64_t size : batch) require(size > 0, "attention: no scores");
    const auto fits = [&](const Sizes& strides) { return strides.size() == batch.size(); };
    const auto scores = [&](const Matmul& p) { return p.m == m && p.n == n && p.k > 0 && fits(p.x_strides) && fits(p.y_strides); };
    require(has_probabilities || (keeps && has_gradient), "attention: neither scores nor probabilities");
    if (has_probabilities) {
        require(scores(probabilities), "attention: scores of another size");
        require(!has_mask || (fits(mask_strides) && mask_row >= 0), "attention: a mask's strides do not fit");
        const size_t blocks = static_cast<size_t>(ceil_div(m, ROWS));
        require(live.size() == blocks && gap.size() == blocks, "attention: not as many live columns as blocks");
        for (int64_t columns : live) require(columns > 0 && columns <= n, "attention: more live columns than there are");
    }
    require(!has_gradient || scores(gradient), "attention: a gradient of another size");
    for (const Reader& reader : readers) {
        const Matmul& one = reader.product;
        const bool over_keys = reader.is_left ? !one.transpose_x : one.transpose_y;
        const int64_t own = reader.is_left ? one.m : one.n;
        require(one.k == (over_keys ? n : m) && own == (over_keys ? m : n) && one.m > 0 && one.n > 0, "attention: a reader of another size");
        require(fits(reader.is_left ? one.y_strides : one.x_strides) && (has_gradient || !reader.of_gradient), "attention: a reader that does not fit");
    }
}

}  // namespace torchane
