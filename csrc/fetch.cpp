#include "fetch.h"

#include <unistd.h>

#include <algorithm>

#include "pool.h"

namespace torchane {
namespace {

constexpr int64_t PIECE = int64_t{1} << 20;  // bytes: a large page at a time would make two threads wait for one

}  // namespace

Fetch::Fetch(std::vector<std::pair<char*, int64_t>> arrays) : arrays_(std::move(arrays)) {
    for (const auto& array : arrays_) ends_.push_back(pieces_ += ceil_div(array.second, PIECE));
}

int64_t Fetch::bytes() const {
    int64_t sum = 0, begun = next_;
    for (const auto& array : arrays_) {
        sum += std::min(std::max<int64_t>(begun, 0) * PIECE, array.second);
        begun -= ceil_div(array.second, PIECE);
    }
    return sum;
}

void Fetch::run() {
    const int64_t page = sysconf(_SC_PAGESIZE);
    for (int64_t piece; (piece = next_.fetch_add(1)) < pieces_;) {
        const auto at = std::upper_bound(ends_.begin(), ends_.end(), piece);
        const auto& [begin, size] = arrays_[static_cast<size_t>(at - ends_.begin())];
        const int64_t from = (piece - (at == ends_.begin() ? 0 : at[-1])) * PIECE, to = std::min(from + PIECE, size);
        for (int64_t offset = from; offset < to; offset += page) __atomic_fetch_or(begin + offset, char{0}, __ATOMIC_RELAXED);
    }
}

}  // namespace torchane
