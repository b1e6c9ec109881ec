// Memory that kernels work in: 64-byte aligned, kept from one use to the next.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

namespace torchane {

class Memory {
public:
    Memory() = default;
    Memory(Memory&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Memory& operator=(Memory&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~Memory() { std::free(data_); }

    // At least this many bytes; what was there is lost when it must grow. Throws std::bad_alloc.
    template <typename T = void>
    T* take(size_t bytes) {
        if (bytes > bytes_) {
            const size_t rounded = (bytes + 4095) / 4096 * 4096;
            std::free(std::exchange(data_, nullptr));
            bytes_ = 0;
            data_ = std::aligned_alloc(64, rounded);
            if (data_ == nullptr) throw std::bad_alloc();
            bytes_ = rounded;
        }
        return static_cast<T*>(data_);
    }

    void* data() const { return data_; }
    size_t bytes() const { return bytes_; }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

// The calling thread's own scratch memory, free for whoever runs on it now.
inline Memory& thread_memory() {
    thread_local Memory memory;
    return memory;
}

}  // namespace torchane
