// Copies between the host's tensors and surfaces, and the sums that training takes over gradients.
// Every result has the same bits for any number of threads.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"
#include "steps.h"

namespace torchane {

enum class Element { fp16, fp32, bf16, boolean };  // a boolean is a byte, and counts as 1 unless it is 0

// A strided array of some element type; strides count numbers and may be negative.
struct View {
    void* data;
    Element element;
    Sizes sizes, strides;
};

struct Staging {
    View to, from;  // of equal sizes
    float scale;
};

// to = fp16(fp32(from) * scale), to fp16 numbers from any element.
void stage(const std::vector<Staging>& jobs);
// to = fp32(from) * scale, to fp32 numbers from fp16; one Scan of `from` per job.
std::vector<Scan> unstage(const std::vector<Staging>& jobs);
// Of an fp16 array of any strides.
Scan scan(const View& from);

// Of the bytes of dense memory, for each piece of it: an array that changes in one word has another one for sure, any other change
// is missed once in 2^64. No protection against somebody who wants two arrays to have the same.
using Bytes = std::pair<const unsigned char*, int64_t>;
std::vector<uint64_t> checksums(const std::vector<Bytes>& pieces);

// Dense numbers, fp32 as they are or fp16 times `scale`.
struct Piece {
    const float* whole;
    const half_t* half;
    int64_t size;
    float scale;
};

// An array that lies in pieces, one behind the other. ends: where each ends.
struct Numbers {
    std::vector<Piece> pieces;
    std::vector<int64_t> ends;

    void add(const Piece& piece) {
        pieces.push_back(piece);
        ends.push_back(size() + piece.size);
    }
    int64_t size() const { return ends.empty() ? 0 : ends.back(); }
};
// n of them as fp32, in the calling thread's memory where they are not one piece of fp32.
const float* floats_of(const Numbers& numbers, int64_t begin, int64_t n);
double sum_of_squares(const std::vector<Numbers>& arrays);  // in double

// Dense fp32 arrays.
using Floats = std::pair<float*, int64_t>;
double sum(const std::vector<Floats>& arrays);             // in double
void scale_in_place(const std::vector<Floats>& arrays, float factor);
float largest(const float* array, int64_t size);           // magnitude; NaN where one is, 0 of nothing

}  // namespace torchane
