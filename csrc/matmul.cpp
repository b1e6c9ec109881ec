// Matrix products: cuts the work into panels that fit the caches and hands them to the threads.
//
//     few products     pack the smaller operand once, for all threads; then each thread takes panels of
//                      the larger one, packs them, and multiplies them with all panels of the smaller
//     many products    a thread takes a whole product, as in attention
//     a few rows       of one token: the other operand is read as it lies (isa/matmul_few.cpp)
//
// k is cut into slabs by its size alone and summed in order, so the bits do not depend on the threads.
#include <algorithm>
#include <atomic>

#include "panels.h"
#include "pool.h"
#include "steps.h"

namespace torchane {
namespace {

// A panel of 32 rows by a slab takes 256 KiB: some of them fit the second-level cache together.
constexpr int64_t LONGEST_SLAB = 2048;
constexpr int64_t LINE = 64;
// Numbers from one row to the next, of which whole multiples make rows share sets of the first-level cache: 1 KiB.
constexpr int64_t CROWDED = 512;
// Panels that a thread takes, and packs where their rows are crowded, and what they may take of the second-level cache.
constexpr int64_t MOST_TAKEN = 4, MOST_PACKED = 16, GROUP_BYTES = 1 << 19;

class Product {
public:
    Product(const MatmulKernel& kernel, const Matmul& step)
        : kernel_(kernel), k_(step.k), n_(step.n), slabs_(ceil_div(step.k, LONGEST_SLAB)),
          slab_(round_up(ceil_div(step.k, slabs_), kernel.depth)), panels_a_(ceil_div(step.m, kernel.rows)),
          panels_b_(ceil_div(step.n, kernel.columns)), panel_a_(round_up(kernel.panel_a_bytes(slab_), LINE)),
          panel_b_(round_up(kernel.panel_b_bytes(slab_), LINE)) {}

    // Both return false if an operand held an infinity or a NaN and the kernel cannot take it.
    bool alone(const Side& a, const Side& b, half_t* out) const;
    bool together(const Side& a, const Side& b, half_t* out, Memory& shared) const;

private:
    int64_t tile() const { return kernel_.sum_bytes * kernel_.rows * kernel_.columns; }
    int64_t depth_of(int64_t slab) const { return std::min(slab_, k_ - slab * slab_); }
    // Of k in a slab that is multiplied: to a whole step, zeros included.
    int64_t padded_depth(int64_t slab) const { return round_up(depth_of(slab), kernel_.depth); }

    bool pack_a(char* panels, const Side& a, int64_t begin, int64_t end, int64_t slab) const {
        return pack(kernel_.pack_a, kernel_.panel_a_bytes, kernel_.rows, panel_a_, panels, a, begin, end, slab);
    }
    bool pack_b(char* panels, const Side& b, int64_t begin, int64_t end, int64_t slab) const {
        return pack(kernel_.pack_b, kernel_.panel_b_bytes, kernel_.columns, panel_b_, panels, b, begin, end, slab);
    }

    bool is_crowded(const Side& side) const { return !side.along_k && side.stride % CROWDED == 0 && kernel_.piece > 0; }

    // Panels [begin, end) of a slab, one behind the other. Rows whose beginnings fall into few sets of the first-level cache are read a few at a time, all
    // that the panels need of them: else each would be fetched again for each panel.
    template <typename Pack, typename Bytes>
    bool pack(Pack pack_one, Bytes bytes_of, int64_t width, int64_t panel_bytes, char* panels, const Side& side, int64_t begin, int64_t end, int64_t slab) const {
        const int64_t depth = depth_of(slab), step = is_crowded(side) ? kernel_.piece : depth;
        bool finite = true;
        for (int64_t k = 0; k < depth; k += step)
            for (int64_t i = begin; i < end; ++i) {
                char* panel = panels + (i - begin) * panel_bytes + bytes_of(k) - bytes_of(0);
                finite &= pack_one(panel, side.at(i * width, slab * slab_ + k), side.stride, side.along_k, std::min(width, side.outer - i * width),
                                   std::min(step, depth - k));
            }
        return finite;
    }

    // One tile of C over one slab. `sums` keeps the tiles between slabs, where there are several.
    void multiply(const void* a, const void* b, int64_t panel_a, int64_t panel_b, int64_t slab, float* tile_sums, char* sums,
                  half_t* out, int64_t m) const {
        const int64_t row = panel_a * kernel_.rows, column = panel_b * kernel_.columns;
        const int64_t count = std::min<int64_t>(kernel_.rows, m - row), columns = std::min<int64_t>(kernel_.columns, n_ - column);
        if (slabs_ == 1) return multiply_tile(kernel_, a, b, padded_depth(slab), tile_sums, out + row * n_ + column, n_, count, columns);
        float* c = reinterpret_cast<float*>(sums + (panel_a * panels_b_ + panel_b) * tile());
        kernel_.multiply(a, b, padded_depth(slab), c, slab > 0, count);
        if (slab + 1 < slabs_) return;
        kernel_.store(out + row * n_ + column, n_, c, count, columns);
    }

    const MatmulKernel& kernel_;
    const int64_t k_, n_, slabs_, slab_, panels_a_, panels_b_, panel_a_, panel_b_;
};

bool Product::alone(const Side& a, const Side& b, half_t* out) const {
    const int64_t sums_bytes = slabs_ == 1 ? 0 : panels_a_ * panels_b_ * tile();
    char* memory = thread_memory().take<char>(static_cast<size_t>(tile() + panel_a_ + panels_b_ * panel_b_ + sums_bytes));
    float* tile_sums = reinterpret_cast<float*>(memory);
    char* packed_a = memory + tile();
    char* packed_b = packed_a + panel_a_;
    char* sums = packed_b + panels_b_ * panel_b_;
    bool finite = true;
    kernel_.begin();
    for (int64_t slab = 0; slab < slabs_; ++slab) {
        finite &= pack_b(packed_b, b, 0, panels_b_, slab);
        for (int64_t i = 0; i < panels_a_; ++i) {
            finite &= pack_a(packed_a, a, i, i + 1, slab);
            for (int64_t j = 0; j < panels_b_; ++j)
                multiply(packed_a, packed_b + j * panel_b_, i, j, slab, tile_sums, sums, out, a.outer);
        }
    }
    kernel_.end();
    return finite || !kernel_.needs_finite;
}

bool Product::together(const Side& a, const Side& b, half_t* out, Memory& shared) const {
    const bool keep_a = a.outer < b.outer;  // the smaller operand is packed for all
    const int64_t kept = keep_a ? panels_a_ : panels_b_, taken = keep_a ? panels_b_ : panels_a_;
    const int64_t kept_bytes = keep_a ? panel_a_ : panel_b_, taken_bytes = keep_a ? panel_b_ : panel_a_;
    const int64_t sums_bytes = slabs_ == 1 ? 0 : panels_a_ * panels_b_ * tile();
    char* packed = shared.take<char>(static_cast<size_t>(kept * kept_bytes + sums_bytes));
    char* sums = packed + kept * kept_bytes;
    // A thread takes several panels at once, so that each kept panel is fetched less often.
    const int64_t group = std::clamp<int64_t>(std::min(taken / (4 * threads()), GROUP_BYTES / taken_bytes), 1, is_crowded(keep_a ? b : a) ? MOST_PACKED : MOST_TAKEN);
    const int64_t packed_at_once = std::clamp<int64_t>(std::min(kept / (2 * threads()), GROUP_BYTES / kept_bytes), 1, MOST_PACKED);
    std::atomic<bool> finite{true};
    for (int64_t slab = 0; slab < slabs_; ++slab) {
        parallel(ceil_div(kept, packed_at_once), [&](int64_t task, int) {
            const int64_t begin = task * packed_at_once, end = std::min(kept, begin + packed_at_once);
            char* panels = packed + begin * kept_bytes;
            if (!(keep_a ? pack_a(panels, a, begin, end, slab) : pack_b(panels, b, begin, end, slab))) finite.store(false, std::memory_order_relaxed);
        });
        parallel(ceil_div(taken, group), [&](int64_t task, int) {
            char* memory = thread_memory().take<char>(static_cast<size_t>(tile() + group * taken_bytes));
            float* tile_sums = reinterpret_cast<float*>(memory);
            char* own = memory + tile();
            const int64_t begin = task * group, end = std::min(taken, begin + group);
            if (!(keep_a ? pack_b(own, b, begin, end, slab) : pack_a(own, a, begin, end, slab))) finite.store(false, std::memory_order_relaxed);
            kernel_.begin();
            for (int64_t i = 0; i < kept; ++i)
                for (int64_t j = begin; j < end; ++j) {
                    const char* kept_panel = packed + i * kept_bytes;
                    const char* own_panel = own + (j - begin) * taken_bytes;
                    if (keep_a) multiply(kept_panel, own_panel, i, j, slab, tile_sums, sums, out, a.outer);
                    else multiply(own_panel, kept_panel, j, i, slab, tile_sums, sums, out, a.outer);
                }
            kernel_.end();
        });
    }
    return finite.load() || !kernel_.needs_finite;
}

// A product with a few rows of A or columns of B: `large` is the other operand.
class FewProduct {
public:
    FewProduct(const FewKernel& kernel, const Matmul& step)
        : kernel_(kernel), k_(step.k), n_(step.n), is_few_rows_(step.m <= step.n), few_(std::min(step.m, step.n)) {}

    bool is_one() const { return few_ > 0 && few_ <= kernel_.most; }

    void alone(const Side& a, const Side& b, half_t* out) const {
        float* small = thread_memory().take<float>(small_bytes());
        widen(small, is_few_rows_ ? a : b);
        rows(is_few_rows_ ? b : a, 0, (is_few_rows_ ? b : a).outer, small, out);
    }

    void together(const Side& a, const Side& b, half_t* out, Memory& shared) const {
        const Side& large = is_few_rows_ ? b : a;
        float* small = shared.take<float>(small_bytes());
        widen(small, is_few_rows_ ? a : b);
        // Some 64 KiB of the large operand to a task.
        const int64_t taken = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, k_ * kernel_.block)) * kernel_.block;
        parallel(ceil_div(large.outer, taken), [&](int64_t task, int) {
            rows(large, task * taken, std::min(large.outer, (task + 1) * taken), small, out);
        });
    }

private:
    size_t small_bytes() const { return static_cast<size_t>(k_ * few_) * sizeof(float); }

    void widen(float* small, const Side& side) const {
        for (int64_t p = 0; p < k_; ++p)
            for (int64_t i = 0; i < few_; ++i) small[p * few_ + i] = half_to_float(*side.at(i, p));
    }

    void rows(const Side& large, int64_t begin, int64_t end, const float* small, half_t* out) const {
        const int64_t to_next_large = is_few_rows_ ? 1 : n_, to_next_small = is_few_rows_ ? n_ : 1;
        kernel_.multiply[few_ - 1](out + begin * to_next_large, to_next_large, to_next_small, large.at(begin, 0), large.stride, large.along_k,
                                   end - begin, small, k_);
    }

    const FewKernel& kernel_;
    const int64_t k_, n_;
    const bool is_few_rows_;
    const int64_t few_;
};

}  // namespace

void Matmul::run(const Run& run) const {
    const half_t* x_data = run.at(x);
    const half_t* y_data = run.at(y);
    half_t* out_data = run.at(out);
    const int64_t products = product(batch);
    const Arithmetic arithmetic = exact && run.arithmetic == Arithmetic::fast ? Arithmetic::exact : run.arithmetic;
    const MatmulKernel& kernel = kernels(arithmetic).matmul;
    const FewProduct few(kernels(Arithmetic::exact).few, *this);
    const bool is_few = arithmetic == Arithmetic::exact && few.is_one();
    const Product with(kernel, *this), safely(finite_or_not_matmul(), *this);
    const auto sides = [&](int64_t x_offset, int64_t y_offset) {
        return std::pair(Side{x_data + x_offset, transpose_x ? m : k, !transpose_x, m},
                         Side{y_data + y_offset, transpose_y ? k : n, transpose_y, n});
    };
    const auto each = [&](int64_t index, auto&& solve) {
        Odometer<2> position(batch, {&x_strides, &y_strides});
        position.seek(index);
        const auto [a, b] = sides(position.offset[0], position.offset[1]);
        solve(a, b, out_data + index * m * n);
    };
    if (products >= 4) {
        parallel(products, [&](int64_t index, int) {
            each(index, [&](const Side& a, const Side& b, half_t* to) {
                if (is_few) few.alone(a, b, to);
                else if (!with.alone(a, b, to)) safely.alone(a, b, to);
            });
        });
        return;
    }
    for (int64_t index = 0; index < products; ++index)
        each(index, [&](const Side& a, const Side& b, half_t* to) {
            if (is_few) few.together(a, b, to, run.shared);
            else if (!with.together(a, b, to, run.shared)) safely.together(a, b, to, run.shared);
        });
}

std::vector<Extent> Matmul::extents() const {
    int64_t last_x = m * k - 1, last_y = k * n - 1;
    for (size_t axis = 0; axis < batch.size(); ++axis) {
        last_x += (batch[axis] - 1) * x_strides[axis];
        last_y += (batch[axis] - 1) * y_strides[axis];
    }
    return {{x, last_x}, {y, last_y}, {out, product(batch) * m * n - 1}};
}

}  // namespace torchane
