// A surface: one-dimensional memory that the host and the engine both see. No copy is ever made of it.
//
//   host writes │ lock ... unlock │ engine runs │ lock ... unlock │ host reads
//
// An IOSurface on the routes through AppleNeuralEngine.framework, a buffer object on the route through Espresso. While the
// host holds the lock the memory is the host's; a dispatch releases it for its own time (Program::run) and takes it back.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "objc.h"

namespace torchane::apple {

class Surface;

// What a program has made for sets of surfaces; it drops those of a surface that goes.
class SurfaceUser {
public:
    virtual ~SurfaceUser() = default;
    virtual void forget(const Surface* surface) = 0;
};

class Surface {
public:
    enum class Kind { iosurface, buffer };

    // size_bytes of zeros, rounded up to a multiple of 64 KiB: smaller ones are refused by some systems (status 0x1d).
    Surface(Kind kind, size_t size_bytes);
    ~Surface();
    Surface(const Surface&) = delete;
    Surface& operator=(const Surface&) = delete;

    Kind kind() const { return kind_; }
    size_t capacity_bytes() const { return capacity_; }
    // Valid while the host holds the lock; the address does not change.
    void* data() const { return data_; }

    // The host takes the memory, for good: dispatches give it back when they are done.
    void hold();
    bool is_held() const { return held_; }
    // For a dispatch: releases the lock where it is held; true where it was.
    bool release();
    void retake();

    // The framework's object around the IOSurface, made at the first use.
    id object();
    // The buffer object of Espresso.
    void* buffer() const { return buffer_; }

    void used_by(const std::shared_ptr<SurfaceUser>& user);

private:
    void lock();
    void unlock();

    Kind kind_;
    size_t capacity_ = 0;
    void* data_ = nullptr;
    SurfaceRef surface_ = nullptr;
    void* buffer_ = nullptr;
    Owned object_;
    bool held_ = false;
    std::mutex mutex_;
    std::vector<std::weak_ptr<SurfaceUser>> users_;
};

}  // namespace torchane::apple
