#include "staging.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "pool.h"
#include "transpose.h"

namespace torchane {
namespace {

constexpr int64_t TASK = 32768;  // numbers: 128 KiB of fp32
// The side of a square that is transposed, in the second-level cache: its rows lie in pages of their own on
// both sides, so the longer they are, the fewer pages are looked up.
constexpr int64_t SIDE = 256;

size_t bytes_of(Element element) { return element == Element::fp32 ? 4 : element == Element::boolean ? 1 : 2; }

char* at(const View& view, int64_t offset) { return static_cast<char*>(view.data) + offset * static_cast<int64_t>(bytes_of(view.element)); }

void narrow(half_t* to, Element element, const void* from, int64_t n, float scale) {
    const Kernels& table = kernels();
    switch (element) {
        case Element::fp32: return table.narrow(to, static_cast<const float*>(from), n, scale);
        case Element::bf16: return table.narrow_bf16(to, static_cast<const uint16_t*>(from), n, scale);
        case Element::boolean: return table.narrow_bool(to, static_cast<const uint8_t*>(from), n, scale);
        default: return table.narrow_half(to, static_cast<const half_t*>(from), n, scale);
    }
}

// The axes that both sides share, in the order of one side's strides, joined where both walk alike. The
// last one is `inner`; `across` is the axis on which the other side has neighbours, or none.
struct Joint {
    Sizes sizes, to, from;

    Joint(const View& to_view, const View& from_view) {
        std::vector<size_t> order;
        for (size_t axis = 0; axis < to_view.sizes.size(); ++axis)
            if (to_view.sizes[axis] != 1) order.push_back(axis);
        const auto stride = [&](size_t axis) { return std::abs(to_view.strides[axis]); };
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return stride(a) > stride(b); });
        for (size_t axis : order) {
            const int64_t size = to_view.sizes[axis], t = to_view.strides[axis], f = from_view.strides[axis];
            if (!sizes.empty() && to.back() == t * size && from.back() == f * size) {
                sizes.back() *= size;
                to.back() = t;
                from.back() = f;
            } else {
                sizes.push_back(size);
                to.push_back(t);
                from.push_back(f);
            }
        }
        if (sizes.empty()) sizes = to = from = {1};
    }

    enum class Way { runs, squares, numbers };
    Way way() const {
        if (to.back() != 1) return Way::numbers;
        if (from.back() == 1) return Way::runs;
        return across() < sizes.size() - 1 ? Way::squares : Way::numbers;
    }
    size_t across() const {
        return static_cast<size_t>(std::find(from.begin(), from.end() - 1, 1) - from.begin());
    }
};

// The pieces of a job, which threads may take in any order.
class Pieces {
public:
    explicit Pieces(const Staging& job) : job_(job), joint_(job.to, job.from), outer_(joint_), way_(joint_.way()) {
        if (product(job.to.sizes) == 0) return;
        const int64_t inner = joint_.sizes.back();
        if (way_ == Joint::Way::squares) {
            across_ = joint_.across();
            columns_ = joint_.sizes[across_];
            drop(joint_.sizes.size() - 1);
            drop(across_);
            piece_ = std::max<int64_t>(SIDE, TASK / columns_ / SIDE * SIDE);
            per_task_ = std::max<int64_t>(1, TASK / (columns_ * inner));
        } else {
            drop(joint_.sizes.size() - 1);
            piece_ = std::min(inner, TASK);
            per_task_ = std::max<int64_t>(1, TASK / piece_);
        }
        pieces_ = ceil_div(inner, piece_);
        units_ = product(outer_.sizes) * pieces_;
    }

    int64_t tasks() const { return ceil_div(units_, per_task_); }

    // Copies what is the task's. Convert has
    //   run(to, from, n)                                         n neighbours on both sides
    //   square(to, to_stride, from, from_stride, rows, columns)  to[j][i] = from[i][j]
    template <typename Convert>
    void run(int64_t task, const Convert& convert) const {
        const int64_t inner = joint_.sizes.back(), t = joint_.to.back(), f = joint_.from.back();
        Odometer<2> where(outer_.sizes, {&outer_.to, &outer_.from});
        for (int64_t unit = task * per_task_, end = std::min(units_, unit + per_task_); unit < end; ++unit) {
            where.seek(unit / pieces_);
            const int64_t begin = unit % pieces_ * piece_, n = std::min(piece_, inner - begin);
            char* to = at(job_.to, where.offset[0] + begin * t);
            const char* from = at(job_.from, where.offset[1] + begin * f);
            switch (way_) {
                case Joint::Way::runs: convert.run(to, from, n); break;
                case Joint::Way::squares: convert.square(to, joint_.to[across_], from, f, n, columns_); break;
                default:
                    for (int64_t i = 0; i < n; ++i)
                        convert.run(at(job_.to, where.offset[0] + (begin + i) * t), at(job_.from, where.offset[1] + (begin + i) * f), 1);
            }
        }
    }

private:
    void drop(size_t axis) {
        for (Sizes* list : {&outer_.sizes, &outer_.to, &outer_.from}) list->erase(list->begin() + static_cast<int64_t>(axis));
    }

    const Staging& job_;
    Joint joint_, outer_;
    Joint::Way way_;
    size_t across_ = 0;
    int64_t columns_ = 0, piece_ = 1, pieces_ = 1, per_task_ = 1, units_ = 0;
};

struct Narrow {
    Element element;
    float scale;

    void run(char* to, const char* from, int64_t n) const { narrow(reinterpret_cast<half_t*>(to), element, from, n, scale); }

    void square(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t rows, int64_t columns) const {
        half_t* rounded = thread_memory().take<half_t>(SIDE * SIDE * sizeof(half_t));
        const int64_t size = static_cast<int64_t>(bytes_of(element));
        for (int64_t i0 = 0; i0 < rows; i0 += SIDE)
            for (int64_t j0 = 0; j0 < columns; j0 += SIDE) {
                const int64_t m = std::min(SIDE, rows - i0), n = std::min(SIDE, columns - j0);
                for (int64_t i = 0; i < m; ++i)
                    narrow(rounded + i * SIDE, element, from + ((i0 + i) * from_stride + j0) * size, n, scale);
                transpose_16(reinterpret_cast<half_t*>(to) + j0 * to_stride + i0, to_stride, rounded, SIDE, m, n);
            }
    }
};

struct Widen {
    float scale;
    Scan* seen;

    void run(char* to, const char* from, int64_t n) const {
        constexpr int64_t BLOCK = 4096;  // read once from memory, the second time from the nearest cache
        const half_t* source = reinterpret_cast<const half_t*>(from);
        for (int64_t begin = 0; begin < n; begin += BLOCK) {
            const int64_t count = std::min(BLOCK, n - begin);
            kernels().scan(source + begin, count, seen);
            kernels().widen(reinterpret_cast<float*>(to) + begin, source + begin, count, scale);
        }
    }

    void square(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t rows, int64_t columns) const {
        half_t* turned = thread_memory().take<half_t>(SIDE * SIDE * sizeof(half_t));
        const half_t* source = reinterpret_cast<const half_t*>(from);
        for (int64_t i0 = 0; i0 < rows; i0 += SIDE)
            for (int64_t j0 = 0; j0 < columns; j0 += SIDE) {
                const int64_t m = std::min(SIDE, rows - i0), n = std::min(SIDE, columns - j0);
                transpose_16(turned, SIDE, source + i0 * from_stride + j0, from_stride, m, n);
                for (int64_t j = 0; j < n; ++j)
                    run(reinterpret_cast<char*>(reinterpret_cast<float*>(to) + (j0 + j) * to_stride + i0),
                        reinterpret_cast<const char*>(turned + j * SIDE), m);
            }
    }
};

void join(Scan& into, const Scan& from) {
    into.max_abs = std::max(into.max_abs, from.max_abs);
    into.non_finite += from.non_finite;
    into.zeros += from.zeros;
    into.count += from.count;
}

// Calls work(job, task) for every task of every job.
template <typename Count, typename Work>
void for_all(size_t jobs, Count tasks_of, Work work) {
    Sizes begins{0};
    for (size_t job = 0; job < jobs; ++job) begins.push_back(begins.back() + tasks_of(job));
    parallel(begins.back(), [&](int64_t task, int) {
        const auto after = std::upper_bound(begins.begin(), begins.end(), task);
        const size_t job = static_cast<size_t>(after - begins.begin()) - 1;
        work(job, task - begins[job]);
    });
}

constexpr int64_t SUMMED = 1 << 16;  // numbers whose sum joins the others in order

// The sum of what `of(array, begin, n)` gives for each block of each array, in the order of the arrays.
template <typename Of>
double in_order(const std::vector<Numbers>& arrays, Of of) {
    std::vector<std::vector<double>> partial(arrays.size());
    for (size_t a = 0; a < arrays.size(); ++a) partial[a].resize(static_cast<size_t>(ceil_div(arrays[a].size(), SUMMED)));
    for_all(arrays.size(), [&](size_t a) { return static_cast<int64_t>(partial[a].size()); }, [&](size_t a, int64_t block) {
        const int64_t begin = block * SUMMED, n = std::min(SUMMED, arrays[a].size() - begin);
        partial[a][static_cast<size_t>(block)] = of(arrays[a], begin, n);
    });
    double total = 0;
    for (const auto& blocks : partial)
        for (double block : blocks) total += block;
    return total;
}


// Each lane takes every eighth word: eight chains of multiplications run beside each other. x ^ word and * odd are both one to one, so a
// lane that differs once stays different unless a later word differs too.
constexpr int64_t LANES = 8, CHECKED = 1 << 18;  // bytes of a task
constexpr uint64_t ODD = 0x9E3779B97F4A7C15u, OTHER_ODD = 0xC2B2AE3D27D4EB4Fu;

uint64_t mixed(uint64_t a, uint64_t b) {
    a = (a ^ b) * ODD;
    return a ^ (a >> 29);
}

uint64_t checksum(const unsigned char* data, int64_t size) {
    uint64_t lanes[LANES];
    for (int64_t lane = 0; lane < LANES; ++lane) lanes[lane] = OTHER_ODD * static_cast<uint64_t>(lane + 1);
    const int64_t whole = size / (8 * LANES) * (8 * LANES);
    for (int64_t at = 0; at < whole; at += 8 * LANES)
        for (int64_t lane = 0; lane < LANES; ++lane) {
            uint64_t word;
            std::memcpy(&word, data + at + 8 * lane, 8);
            lanes[lane] = (lanes[lane] ^ word) * ODD;
            lanes[lane] = (lanes[lane] << 31) | (lanes[lane] >> 33);  // high bits reach the low ones, which a product keeps apart
        }
    uint64_t found = static_cast<uint64_t>(size);
    for (uint64_t lane : lanes) found = mixed(found, lane);
    for (int64_t at = whole; at < size; ++at) found = mixed(found, data[at] + 1u);
    return found;
}

// The piece that holds a number, and how many of its numbers come before that one.
std::pair<const Piece*, int64_t> piece_at(const Numbers& numbers, int64_t number) {
    const size_t at = static_cast<size_t>(std::upper_bound(numbers.ends.begin(), numbers.ends.end(), number) - numbers.ends.begin());
    return {&numbers.pieces[at], number - (numbers.ends[at] - numbers.pieces[at].size)};
}

}  // namespace

std::vector<uint64_t> checksums(const std::vector<Bytes>& pieces) {
    std::vector<std::vector<uint64_t>> partial(pieces.size());
    for (size_t i = 0; i < pieces.size(); ++i) partial[i].resize(static_cast<size_t>(ceil_div(pieces[i].second, CHECKED)));
    for_all(pieces.size(), [&](size_t i) { return static_cast<int64_t>(partial[i].size()); }, [&](size_t i, int64_t block) {
        const int64_t begin = block * CHECKED;
        partial[i][static_cast<size_t>(block)] = checksum(pieces[i].first + begin, std::min(CHECKED, pieces[i].second - begin));
    });
    std::vector<uint64_t> found;
    for (const auto& blocks : partial) {
        uint64_t total = OTHER_ODD;
        for (uint64_t block : blocks) total = mixed(total, block);
        found.push_back(total);
    }
    return found;
}

void stage(const std::vector<Staging>& jobs) {
    const std::vector<Pieces> pieces(jobs.begin(), jobs.end());
    for_all(jobs.size(), [&](size_t job) { return pieces[job].tasks(); }, [&](size_t job, int64_t task) {
        pieces[job].run(task, Narrow{jobs[job].from.element, jobs[job].scale});
    });
}

std::vector<Scan> unstage(const std::vector<Staging>& jobs) {
    std::vector<Scan> seen(jobs.size());
    const std::vector<Pieces> pieces(jobs.begin(), jobs.end());
    std::mutex mutex;
    for_all(jobs.size(), [&](size_t job) { return pieces[job].tasks(); }, [&](size_t job, int64_t task) {
        Scan own;
        pieces[job].run(task, Widen{jobs[job].scale, &own});
        std::lock_guard lock(mutex);
        join(seen[job], own);
    });
    return seen;
}

Scan scan(const View& from) {
    if (product(from.sizes) == 0) return {};
    const Joint joint(from, from);
    Sizes outer = joint.sizes, strides = joint.from;
    const int64_t inner = outer.back(), stride = strides.back();
    outer.pop_back();
    strides.pop_back();
    const int64_t piece = std::min(inner, TASK), pieces = ceil_div(inner, piece);
    const int64_t per_task = std::max<int64_t>(1, TASK / piece), units = product(outer) * pieces;
    const half_t* data = static_cast<const half_t*>(from.data);
    Scan seen;
    std::mutex mutex;
    parallel(ceil_div(units, per_task), [&](int64_t task, int) {
        Scan own;
        Odometer<1> where(outer, {&strides});
        for (int64_t unit = task * per_task, end = std::min(units, unit + per_task); unit < end; ++unit) {
            where.seek(unit / pieces);
            const int64_t begin = unit % pieces * piece, n = std::min(piece, inner - begin);
            const half_t* row = data + where.offset[0] + begin * stride;
            if (stride == 1) kernels().scan(row, n, &own);
            else
                for (int64_t i = 0; i < n; ++i) kernels().scan(row + i * stride, 1, &own);
        }
        std::lock_guard lock(mutex);
        join(seen, own);
    });
    return seen;
}

const float* floats_of(const Numbers& numbers, int64_t begin, int64_t n) {
    auto [piece, offset] = piece_at(numbers, begin);
    if (piece->half == nullptr && offset + n <= piece->size) return piece->whole + offset;
    float* const widened = thread_memory().take<float>(static_cast<size_t>(n) * sizeof(float));
    for (int64_t done = 0; done < n; ++piece, offset = 0) {
        const int64_t count = std::min(n - done, piece->size - offset);
        if (piece->half == nullptr) std::memcpy(widened + done, piece->whole + offset, static_cast<size_t>(count) * sizeof(float));
        else kernels().widen(widened + done, piece->half + offset, count, piece->scale);
        done += count;
    }
    return widened;
}

double sum_of_squares(const std::vector<Numbers>& arrays) {
    const Kernels& table = kernels();
    return in_order(arrays, [&](const Numbers& numbers, int64_t begin, int64_t n) {
        const auto [piece, offset] = piece_at(numbers, begin);
        if (piece->half != nullptr && offset + n <= piece->size) return table.sum_of_squares_half(piece->half + offset, n, piece->scale);
        return table.sum_of_squares(floats_of(numbers, begin, n), n);
    });
}

double sum(const std::vector<Floats>& arrays) {
    std::vector<Numbers> all;
    for (const Floats& one : arrays) all.emplace_back().add({one.first, nullptr, one.second, 1.0f});
    return in_order(all, [](const Numbers& numbers, int64_t begin, int64_t n) { return kernels().sum(floats_of(numbers, begin, n), n); });
}

float largest(const float* array, int64_t size) {
    std::vector<float> found(static_cast<size_t>(ceil_div(size, SUMMED)));
    parallel(static_cast<int64_t>(found.size()), [&](int64_t block, int) {
        const int64_t begin = block * SUMMED;
        found[static_cast<size_t>(block)] = kernels().largest(array + begin, std::min(SUMMED, size - begin));
    });
    return kernels().largest(found.data(), static_cast<int64_t>(found.size()));
}

void scale_in_place(const std::vector<Floats>& arrays, float factor) {
    for_all(arrays.size(), [&](size_t a) { return ceil_div(arrays[a].second, SUMMED); }, [&](size_t a, int64_t block) {
        const int64_t begin = block * SUMMED;
        kernels().scale(arrays[a].first + begin, std::min(SUMMED, arrays[a].second - begin), factor);
    });
}

}  // namespace torchane
