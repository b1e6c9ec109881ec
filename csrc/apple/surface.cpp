#include "surface.h"

#include <algorithm>
#include <cstring>

#include "foundation.h"
#include "e5_calls.h"
#include "selectors.h"

namespace torchane::apple {
namespace {

constexpr size_t GRANULE = 64 << 10;

id key(const char* name) {
    id found = *static_cast<id*>(required(name));
    return not_nil(found, name);
}

SurfaceRef create(size_t bytes) {
    Pool pool;
    id size = number(bytes), one = number(1);
    id properties = dictionary({{key("kIOSurfaceWidth"), size},
                                {key("kIOSurfaceHeight"), one},
                                {key("kIOSurfaceBytesPerElement"), one},
                                {key("kIOSurfaceBytesPerRow"), size},
                                {key("kIOSurfaceAllocSize"), size},
                                {key("kIOSurfacePixelFormat"), number(0)}});
    auto* make = reinterpret_cast<SurfaceRef (*)(id)>(required("IOSurfaceCreate"));
    SurfaceRef made = make(properties);
    if (made == nullptr) throw Fault("nil", "IOSurfaceCreate", "no surface of " + std::to_string(bytes) + " bytes could be made");
    return made;
}

using ChangeLock = int (*)(SurfaceRef, uint32_t, uint32_t*);

// A function that every dispatch calls: looked up once per open().
class LockFunction {
public:
    constexpr explicit LockFunction(const char* name) : name_(name) {}
    void operator()(SurfaceRef surface) const {
        if (seen_.load(std::memory_order_acquire) != generation()) {
            found_.store(reinterpret_cast<ChangeLock>(required(name_)), std::memory_order_relaxed);
            seen_.store(generation(), std::memory_order_release);
        }
        if (const int status = found_.load(std::memory_order_relaxed)(surface, 0, nullptr))
            throw Fault("status", name_, "it returned " + std::to_string(status), "IOSurface", status);
    }

private:
    const char* name_;
    mutable std::atomic<ChangeLock> found_{nullptr};
    mutable std::atomic<unsigned> seen_{0};
};

const LockFunction lock_surface{"IOSurfaceLock"}, unlock_surface{"IOSurfaceUnlock"};

}  // namespace

Surface::Surface(Kind kind, size_t size_bytes) : kind_(kind), capacity_((std::max<size_t>(size_bytes, 1) + GRANULE - 1) / GRANULE * GRANULE) {
    if (kind_ == Kind::buffer) {
        e5_check("e5rt_buffer_object_alloc", e5_call<void**, uint64_t, uint32_t>("e5rt_buffer_object_alloc", &buffer_, capacity_, 0));
        e5_check("e5rt_buffer_object_get_data_ptr", e5_call<void*, void**>("e5rt_buffer_object_get_data_ptr", buffer_, &data_));
        std::memset(data_, 0, capacity_);
        return;
    }
    surface_ = create(capacity_);
    try {
        lock();
        data_ = reinterpret_cast<void* (*)(SurfaceRef)>(required("IOSurfaceGetBaseAddress"))(surface_);
        const size_t given = reinterpret_cast<size_t (*)(SurfaceRef)>(required("IOSurfaceGetAllocSize"))(surface_);
        if (data_ == nullptr || given < capacity_)
            throw Fault("nil", "IOSurfaceGetBaseAddress", "a surface of " + std::to_string(capacity_) + " bytes has " + std::to_string(given));
        std::memset(data_, 0, capacity_);
        unlock();  // until the host looks
    } catch (...) {
        reinterpret_cast<void (*)(SurfaceRef)>(required("CFRelease"))(surface_);
        throw;
    }
}

Surface::~Surface() {
    try {
        require_unforked();
        {
            std::lock_guard<std::mutex> guard(mutex_);
            for (const auto& user : users_)
                if (auto alive = user.lock()) alive->forget(this);
        }
        if (kind_ == Kind::buffer) {
            e5_call<void**>("e5rt_buffer_object_release", &buffer_);
        } else {
            if (held_) unlock();
            Pool pool;
            object_ = Owned();
            reinterpret_cast<void (*)(SurfaceRef)>(required("CFRelease"))(surface_);
        }
    } catch (const Fault&) {  // a destructor has nobody to tell
    }
}

void Surface::lock() { lock_surface(surface_); }
void Surface::unlock() { unlock_surface(surface_); }

void Surface::hold() {
    std::lock_guard<std::mutex> guard(mutex_);
    if (held_ || kind_ == Kind::buffer) return;
    lock();
    held_ = true;
}

bool Surface::release() {
    if (!held_ || kind_ == Kind::buffer) return false;
    unlock();
    held_ = false;
    return true;
}

void Surface::retake() { hold(); }

id Surface::object() {
    if (!object_) object_ = Owned(not_nil(surface_object.on_class(surface_), surface_object.call()));
    return object_.get();
}

void Surface::used_by(const std::shared_ptr<SurfaceUser>& user) {
    std::lock_guard<std::mutex> guard(mutex_);
    for (auto& known : users_)
        if (auto alive = known.lock(); alive == user) return;
    std::erase_if(users_, [](const auto& known) { return known.expired(); });
    users_.push_back(user);
}

}  // namespace torchane::apple
