// Objective-C without a header of Apple's: the runtime is found by name, a message is a call through its exact type.
//
//   open({"/usr/lib/libobjc.A.dylib", ...})                       dlopen, once; every symbol by dlsym
//   constexpr Method<bool(uint32_t, id, id*)> load{"_ANEInMemoryModel", '-', "loadWithQoS:options:error:"};
//   load(model, 21, options, &error)
//
// A Method knows its C++ types, and from these the encoding that the runtime must report for it (method_getTypeEncoding).
// The two are compared before the first message: a selector whose types have changed is refused with both strings, since
// to send it would be undefined. objc_msgSend is never called as a variadic: on arm64 variadic arguments travel otherwise.
// Selectors of Foundation are public and frozen; call() sends those without the comparison.
//
// An NSException unwinds as a C++ exception of a foreign kind, and catch (...) ends it: tested with GCC's runtime on Linux;
// Apple's 64-bit runtime documents it, and no Mac has run this file. Its text is taken when it is thrown, through
// objc_setExceptionPreprocessor, for a foreign exception does not show its object.
#pragma once

#include <atomic>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

#include "fault.h"

namespace torchane::apple {

struct Objective;
using id = Objective*;
struct SurfaceStruct;
using SurfaceRef = SurfaceStruct*;
struct SelectorStruct;
using SEL = SelectorStruct*;

// Opens libraries, later ones by the symbols of earlier ones, and finds the runtime in them. Replaces what was open.
// Throws Fault "missing".
void open(const std::vector<std::string>& libraries);
bool is_open();
// Throws Fault "forked" in a process that was forked after open(): the connections of Apple's frameworks stay behind, and what a destructor
// sends there would end the parent's programs. From then on nothing is sent.
void require_unforked();
// Where a symbol of the opened libraries lies, nullptr where it is not.
void* symbol(const char* name);
// symbol(), or Fault "missing".
void* required(const char* name);
// A class by name, nullptr where it is not.
id class_named(const char* name);
id required_class(const char* name);

// Never 0, and changes with open(): what was looked up in an earlier one is looked up again.
unsigned generation();
SEL selector(const char* name);
void* implementation(id receiver, SEL selector);

// Throws Fault "missing" or "encoding" unless the class has the selector with this encoding.
SEL checked_selector(const char* type, char sign, const char* name, const std::string& encoding);
bool has_method(const char* type, char sign, const char* name);
// The types of a method as the runtime has them, without frame offsets; "" where there is none. Sends nothing.
std::string encoding_of(const char* type, char sign, const char* name);

// Marks this thread as sending, so that the text of an exception is kept; and the Fault of what was caught.
struct Sending {
    Sending();
    ~Sending();
};
[[noreturn]] void rethrow_foreign(const std::string& call);

template <class T> struct Encoded;
template <> struct Encoded<void> { static constexpr const char* text = "v"; };
template <> struct Encoded<id> { static constexpr const char* text = "@"; };
template <> struct Encoded<id*> { static constexpr const char* text = "^@"; };
template <> struct Encoded<SurfaceRef> { static constexpr const char* text = "^"; };
template <> struct Encoded<bool> { static constexpr const char* text = "B"; };
template <> struct Encoded<char> { static constexpr const char* text = "c"; };
template <> struct Encoded<int32_t> { static constexpr const char* text = "i"; };
template <> struct Encoded<uint32_t> { static constexpr const char* text = "I"; };
template <> struct Encoded<int64_t> { static constexpr const char* text = "q"; };
template <> struct Encoded<uint64_t> { static constexpr const char* text = "Q"; };

// name() is asked for where it fails only.
template <class R, class N, class... A>
R send(id receiver, SEL selector, const N& name, A... args) {
    auto* function = reinterpret_cast<R (*)(id, SEL, A...)>(implementation(receiver, selector));
    Sending sending;
    try {
        return function(receiver, selector, args...);
    } catch (const std::exception&) {
        throw;
#ifdef __GLIBCXX__
    } catch (const abi::__forced_unwind&) {  // a thread that is being ended: to stop that aborts the process
        throw;
#endif
    } catch (...) {
        rethrow_foreign(name());
    }
}

template <class Signature> class Method;

// A selector of the private framework. Constant, shared by all threads.
template <class R, class... A>
class Method<R(A...)> {
public:
    constexpr Method(const char* type, char sign, const char* name) : type_(type), name_(name), sign_(sign) {}

    // To an instance, or to the class itself for '+'.
    R operator()(id receiver, A... args) const {
        if (receiver == nullptr) throw Fault("nil", call(), "the receiver is nil");
        return send<R>(receiver, look_up(), [this] { return call(); }, args...);
    }
    R on_class(A... args) const {
        look_up();
        return (*this)(class_.load(std::memory_order_relaxed), args...);
    }

    // For selectors that can be done without: there, and of the types that would be sent.
    bool fits() const {
        try {
            look_up();
            return true;
        } catch (const Fault&) {
            return false;
        }
    }
    bool is_there() const { return has_method(type_, sign_, name_); }
    void check() const { look_up(); }
    std::string call() const { return std::string(1, sign_) + "[" + type_ + " " + name_ + "]"; }

private:
    SEL look_up() const {
        if (seen_.load(std::memory_order_acquire) != generation()) {
            found_.store(checked_selector(type_, sign_, name_, std::string(Encoded<R>::text) + "@:" + (std::string() + ... + Encoded<A>::text)),
                         std::memory_order_relaxed);
            class_.store(required_class(type_), std::memory_order_relaxed);
            seen_.store(generation(), std::memory_order_release);
        }
        return found_.load(std::memory_order_relaxed);
    }

    const char *type_, *name_;
    char sign_;
    mutable std::atomic<SEL> found_{nullptr};
    mutable std::atomic<id> class_{nullptr};
    mutable std::atomic<unsigned> seen_{0};
};

// A message to one of Foundation's objects.
template <class R, class... A>
R call(id receiver, const char* name, A... args) {
    if (receiver == nullptr) throw Fault("nil", name, "the receiver is nil");
    return send<R>(receiver, selector(name), [name] { return std::string(name); }, args...);
}

// An object that is kept: retained while this lives. Objects that are not kept die with the Pool around them.
class Owned {
public:
    Owned() = default;
    explicit Owned(id object) : object_(object) {
        if (object_) call<id>(object_, "retain");
    }
    Owned(Owned&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    Owned& operator=(Owned&& other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    ~Owned();
    id get() const { return object_; }
    explicit operator bool() const { return object_ != nullptr; }

private:
    id object_ = nullptr;
};

// An autorelease pool for the time of a block, on this thread.
class Pool {
public:
    Pool();
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

private:
    id pool_;
};

}  // namespace torchane::apple
