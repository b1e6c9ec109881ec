// The steps of a tape: what a loaded program does, one after the other, all sizes known.
//
// A step reads and writes fp16 arrays in numbered spaces: 0 the scratch arena, 1 the constants, then the
// inputs and the outputs of the program, then constants that other programs hold, too. Arrays are dense and row-major unless strides are given; sizes,
// strides and offsets count numbers, not bytes. A step's result may not overlap what it reads, except
// that a chain may write onto an operand of the same geometry.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "half.h"
#include "kernels.h"
#include "memory.h"

namespace torchane {

using Sizes = std::vector<int64_t>;

// Where an array begins.
struct Place {
    int space;
    int64_t offset;
};

// What a run has at hand.
struct Run {
    const std::vector<half_t*>& spaces;
    Memory& shared;  // scratch that the threads of one step share
    Arithmetic arithmetic = Arithmetic::exact;
    half_t* at(Place place) const { return spaces[static_cast<size_t>(place.space)] + place.offset; }
};

// The furthest numbers that a step touches: checked once against the sizes of the spaces, at load.
struct Extent {
    Place place;
    int64_t last;  // the largest offset from place
};

class Step {
public:
    virtual ~Step() = default;
    virtual void run(const Run& run) const = 0;
    virtual std::vector<Extent> extents() const = 0;
};

// out (batch..., m, n) = x (batch..., m, k) y (batch..., k, n); a transposed operand is stored with its
// last two axes exchanged. Batch strides are 0 where an operand is broadcast.
struct Matmul final : Step {
    Place x, y, out;
    int64_t m, n, k;
    bool transpose_x, transpose_y;
    bool exact = false;  // in `fast` arithmetic too
    Sizes batch, x_strides, y_strides;
    void run(const Run& run) const override;
    std::vector<Extent> extents() const override;
};

// A product whose left operand, or right one, has a row, or column, for each of the result with one power of two, from 1 on, at most: the other operand's rows, or
// columns, moved. The bits are those of `product`, which runs instead where a number is infinite or none.
struct Selection final : Step {
    // Rows or columns [out, out + count) of the result: those from `in` on, times `factor`; zeros where that is 0.
    struct Piece {
        int64_t out, in, count;
        half_t factor;
    };
    Matmul product;
    bool is_left;
    std::vector<Piece> pieces;  // in order, without gaps
    void run(const Run& run) const override;
    std::vector<Extent> extents() const override;
    // Throws std::invalid_argument where the pieces do not fit.
    void check() const;

private:
    static void move(half_t* to, const half_t* from, int64_t n, half_t factor);
};

// Copies an array of `sizes`; either side has strides of its own. Covers transpose, slice and concat.
struct Copy final : Step {
    Place x, out;
    Sizes sizes, x_strides, out_strides;
    void run(const Run& run) const override;
    std::vector<Extent> extents() const override;
};

// Reduces the axes of dense x (sizes) that are not kept.
struct Reduce final : Step {
    Place x, out;
    Reduction reduction;
    Sizes sizes;
    std::vector<bool> kept;
    void run(const Run& run) const override;
    void run_exactly(const Run& run) const;  // csrc/engine.cpp
    std::vector<Extent> extents() const override;
};

// softmax over the middle axis of (outer, entries, inner), inner > 1; along rows it is part of a Chain.
struct SoftmaxColumns final : Step {
    Place x, out;
    int64_t outer, entries, inner;
    void run(const Run& run) const override;
    std::vector<Extent> extents() const override;
};

// Element-wise ops over one domain (sizes..., row), block by block, so that what one op hands to the next
// stays in the nearest cache. With `whole_rows` a block is a row, and rows can be reduced, normalised and
// met by numbers that there is one of per row. Each op's result is rounded to fp16 all the same.
struct Chain final : Step {
    // An array in memory as the domain sees it: a stride per size and one along the row (1 or 0).
    struct Operand {
        Place place;
        Sizes strides;
        int64_t along_row;
    };
    enum class Family : int { unary, binary, row, softmax, table, count };
    static constexpr int64_t PATTERNS = 1 << 16;  // fp16 numbers that there are, and entries of a table, which is the operand b
    // A value: the operand of that number, or, from the bits inverted, a register.
    using Value = int;
    struct Micro {
        Family family;
        int op;              // of Unary, Binary or Reduction
        Form form;           // of a binary op
        bool once;           // computes one number per row instead of the row
        Value d, a, b;
    };
    Sizes sizes;
    int64_t row;
    bool whole_rows;
    int registers;
    std::vector<Operand> operands;
    std::vector<Micro> micros;
    void run(const Run& run) const override;
    std::vector<Extent> extents() const override;
    // Throws std::invalid_argument where a number is out of its range.
    void check() const;
};

// Attention of m queries over n keys for each of a batch, or its gradient, or both: only a block of rows of the (m, n) scores is there at once.
//
//     scores = x y                      `probabilities`; with a mask: + mask        P = softmax of each row
//     G = x y                           `gradient`                                 S = P (G - sum of a row of G P)
//     products that read P or S         `readers`
//
// Each of these has the bits that it would have as steps of its own, each intermediate number rounded to fp16. Columns in which all rows of a block have
// probabilities of exactly 0 are left out, where that provably changes no bit. Not for kernels that need finite operands.
struct Attention final : Step {
    // A product that reads P, or S, as its left operand x or its right one y; the other one's place in `product` is not read.
    struct Reader {
        Matmul product;
        bool of_gradient, is_left;
    };
    int64_t m, n;
    Sizes batch;  // of every product here
    bool has_probabilities, has_gradient, has_mask;
    Matmul probabilities, gradient;
    Place mask;
    Sizes mask_strides;  // of the batch
    int64_t mask_row;    // from one row to the next
    // For each block of ROWS rows: how many columns count; and how far the mask of all others lies below the largest of each row.
    Sizes live;
    std::vector<float> gap;
    bool keeps;     // P lies in memory: read without `probabilities`, else written
    Place p;        // (batch, m, n), if it does
    std::vector<Reader> readers;
    static constexpr int64_t ROWS = 96;  // whole panels of every kernel, and whole steps of its sums
    void run(const Run& run) const override;
    std::vector<Extent> extents() const override;
    // Throws std::invalid_argument where the parts do not fit each other.
    void check() const;
};

// Scores of a slice of a vocabulary, and what a loss over all slices needs of them (capture/vocabulary_ops.py):
//
//     forward     m tokens by n entries     top     the largest score of a row, the target's far below all
//                                           total   the sum of exp(score - top)
//                                           own     the target's score, or a number far below all
//                                           kept    the scores, where they are
//     backward    m entries by n tokens     out     exp(score - taken) * grad, at the target (exp(score - 10000 - taken) - rest) * grad
//                 m tokens by n entries     the same of scores that were kept, and are read in place of the product
//
// A token's target is given by `code`, (code_size, tokens): the bits of its entry as signs, or zeros. The bits are those of `parts`, the same computed op
// by op; they run instead where a code is neither, or where numbers are not finite or so far from 0 that this form would not be proven to be theirs.
struct Vocabulary final : Step {
    Matmul scores;  // the product; its m and n alone where kept scores are read. Its result is `kept`, scratch forward where none is kept, `out` backward
    bool is_forward, keeps;
    Place kept;     // (m, n), if it keeps: written forward, read backward
    Place code;
    int64_t code_size;
    half_t left_out;                // what is added to a target's score
    Place top, total, own;          // forward: (tokens,) each
    Place taken, rest, grad, out;   // backward: (tokens,) each, and (m, n)
    std::vector<std::unique_ptr<Step>> parts;
    void run(const Run& run) const override;
    std::vector<Extent> extents() const override;
    // Throws std::invalid_argument where the sizes do not fit.
    void check() const;
};

int64_t product(const Sizes& sizes);

// Counts through all indices of some axes in row-major order, keeping an offset per set of strides.
template <int N>
class Odometer {
public:
    Odometer(const Sizes& sizes, const Sizes* const (&strides)[N]) : sizes_(sizes), index_(sizes.size(), 0) {
        for (int s = 0; s < N; ++s) strides_[s] = strides[s];
    }

    void seek(int64_t position) {
        for (int s = 0; s < N; ++s) offset[s] = 0;
        for (size_t axis = sizes_.size(); axis-- > 0;) {
            index_[axis] = position % sizes_[axis];
            position /= sizes_[axis];
            for (int s = 0; s < N; ++s) offset[s] += index_[axis] * (*strides_[s])[axis];
        }
    }

    void next() {
        for (size_t axis = sizes_.size(); axis-- > 0;) {
            for (int s = 0; s < N; ++s) offset[s] += (*strides_[s])[axis];
            if (++index_[axis] < sizes_[axis]) return;
            for (int s = 0; s < N; ++s) offset[s] -= index_[axis] * (*strides_[s])[axis];
            index_[axis] = 0;
        }
    }

    int64_t offset[N] = {};

private:
    const Sizes& sizes_;
    const Sizes* strides_[N];
    Sizes index_;
};

}  // namespace torchane
