// Memory fetched from the system before it is needed, by whichever threads have time.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

namespace torchane {

// The pages of some arrays, which have to outlive this. A page is fetched by a write that changes nothing, so others may read and write the
// arrays meanwhile. A fault is counted once, where a page that is read first and written later costs two.
class Fetch {
public:
    explicit Fetch(std::vector<std::pair<char*, int64_t>> arrays);

    // Fetches piece by piece until none is left that nobody has begun, or `stop` is called; any number of threads at once.
    void run();
    // Bytes that have been fetched, or are being.
    int64_t bytes() const;
    // Pieces that have begun are finished; no other begins.
    void stop() { next_ = pieces_; }

private:
    std::vector<std::pair<char*, int64_t>> arrays_;
    std::vector<int64_t> ends_;  // of the arrays, in pieces
    int64_t pieces_ = 0;
    std::atomic<int64_t> next_{0};
};

}  // namespace torchane
