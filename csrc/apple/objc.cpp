#include "objc.h"

#include <dlfcn.h>
#include <pthread.h>

#include <cctype>
#include <memory>
#include <mutex>

namespace torchane::apple {
namespace {

struct Method_;
using MethodRef = Method_*;
using Preprocessor = id (*)(id);

struct Runtime {
    std::vector<void*> libraries;
    id (*get_class)(const char*) = nullptr;
    SEL (*register_name)(const char*) = nullptr;
    MethodRef (*instance_method)(id, SEL) = nullptr;
    MethodRef (*class_method)(id, SEL) = nullptr;
    const char* (*type_encoding)(MethodRef) = nullptr;
    void* msg_send = nullptr;                      // Apple's runtime
    void* (*msg_lookup)(id, SEL) = nullptr;        // GCC's, which has no objc_msgSend
};

std::atomic<Runtime*> runtime{nullptr};  // never freed: objects may outlive any moment to do so
std::atomic<unsigned> opened{1};  // 0 is "never looked up": without open() nothing passes for found
std::mutex opening;
std::atomic<bool> forked{false};

// In the child of a fork, but for those that Python starts other programs by. What was looked up is looked up again, and refused.
void after_fork() {
    forked = runtime.load() != nullptr;
    ++opened;
}

Preprocessor next_preprocessor = nullptr;
thread_local int sends = 0;
thread_local std::string thrown_name, thrown_reason;

Runtime& here() {
    require_unforked();
    Runtime* found = runtime.load(std::memory_order_acquire);
    if (found == nullptr) throw Fault("missing", "objc", "no Objective-C runtime has been opened");
    return *found;
}

void* find(const Runtime& in, const char* name) {
    for (void* library : in.libraries)
        if (void* found = dlsym(library, name)) return found;
    return nullptr;
}

template <class F>
void require(const Runtime& in, F& target, const char* name) {
    target = reinterpret_cast<F>(find(in, name));
    if (target == nullptr) throw Fault("missing", name, "the Objective-C runtime has no such function");
}

std::string utf8(id text) {
    if (text == nullptr) return "";
    const char* bytes = call<const char*>(text, "UTF8String");
    return bytes == nullptr ? "" : bytes;
}

// Runs in the throwing thread, before the stack unwinds.
id note_exception(id exception) {
    if (sends > 0) {
        const int depth = std::exchange(sends, 0);  // what this function sends is not noted
        std::string name, reason;
        try {
            name = utf8(call<id>(exception, "name"));
            reason = utf8(call<id>(exception, "reason"));
        } catch (...) {
            reason = "an exception that does not say its reason";
        }
        thrown_name = std::move(name), thrown_reason = std::move(reason);
        sends = depth;
    }
    return next_preprocessor ? next_preprocessor(exception) : exception;
}

// "B36@0:8I16@20^@28" -> "B@:I@^@"; a pointer to any struct is "^".
std::string normalised(const char* encoding) {
    std::string text;
    for (const char* at = encoding; *at; ++at) {
        if (std::isdigit(static_cast<unsigned char>(*at)) || (*at != '\0' && std::string("rnNoORV").find(*at) != std::string::npos)) continue;
        if (*at == '{') {
            for (int depth = 0; *at; ++at) {
                depth += *at == '{' ? 1 : *at == '}' ? -1 : 0;
                if (depth == 0) break;
            }
            if (*at == '\0') break;
            continue;
        }
        text += *at;
    }
    return text;
}

const Method<id()> pool_alloc{"NSAutoreleasePool", '+', "alloc"}, pool_init{"NSAutoreleasePool", '-', "init"};
const Method<void()> pool_drain{"NSAutoreleasePool", '-', "drain"};

std::string written(const char* type, char sign, const char* name) { return std::string(1, sign) + "[" + type + " " + name + "]"; }

MethodRef method_of(const char* type, char sign, const char* name) {
    id found = class_named(type);
    if (found == nullptr) return nullptr;
    return sign == '+' ? here().class_method(found, selector(name)) : here().instance_method(found, selector(name));
}

}  // namespace

void require_unforked() {
    if (forked.load(std::memory_order_relaxed)) throw Fault("forked", "fork", "this process was forked from one that uses Apple's frameworks");
}

void open(const std::vector<std::string>& libraries) {
    require_unforked();
    std::lock_guard<std::mutex> lock(opening);
    static const int registered = pthread_atfork(nullptr, nullptr, after_fork);
    (void)registered;
    auto made = std::make_unique<Runtime>();
    for (const std::string& path : libraries) {
        void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) {
            const char* why = dlerror();
            throw Fault("missing", path, why ? why : "the library cannot be opened");
        }
        made->libraries.push_back(library);
    }
    require(*made, made->get_class, "objc_getClass");
    require(*made, made->register_name, "sel_registerName");
    require(*made, made->instance_method, "class_getInstanceMethod");
    require(*made, made->class_method, "class_getClassMethod");
    require(*made, made->type_encoding, "method_getTypeEncoding");
    made->msg_send = find(*made, "objc_msgSend");
    if (made->msg_send == nullptr) require(*made, made->msg_lookup, "objc_msg_lookup");
    if (auto* set = reinterpret_cast<Preprocessor (*)(Preprocessor)>(find(*made, "objc_setExceptionPreprocessor"))) {
        const Preprocessor before = set(&note_exception);
        if (before != &note_exception) next_preprocessor = before;
    }
    runtime.store(made.release(), std::memory_order_release);
    ++opened;
}

bool is_open() { return runtime.load() != nullptr; }
void* symbol(const char* name) { return find(here(), name); }

void* required(const char* name) {
    void* found = symbol(name);
    if (found == nullptr) throw Fault("missing", name, "the opened libraries have no such symbol");
    return found;
}

id class_named(const char* name) { return here().get_class(name); }

id required_class(const char* name) {
    id found = class_named(name);
    if (found == nullptr) throw Fault("missing", name, "the framework has no such class");
    return found;
}

unsigned generation() { return opened.load(std::memory_order_relaxed); }
SEL selector(const char* name) { return here().register_name(name); }

void* implementation(id receiver, SEL selector) {
    Runtime& found = here();
    return found.msg_send ? found.msg_send : found.msg_lookup(receiver, selector);
}

SEL checked_selector(const char* type, char sign, const char* name, const std::string& encoding) {
    required_class(type);
    MethodRef method = method_of(type, sign, name);
    if (method == nullptr) throw Fault("missing", written(type, sign, name), "the class has no such selector");
    const char* reported = here().type_encoding(method);
    if (reported == nullptr || normalised(reported) != encoding)
        throw Fault("encoding", written(type, sign, name),
                    std::string("its type encoding here is ") + (reported ? reported : "unknown") + ", and the bridge sends " + encoding);
    return selector(name);
}

std::string encoding_of(const char* type, char sign, const char* name) {
    if (class_named(type) == nullptr) return "";
    MethodRef method = method_of(type, sign, name);
    const char* reported = method == nullptr ? nullptr : here().type_encoding(method);
    return reported == nullptr ? "" : normalised(reported);
}

bool has_method(const char* type, char sign, const char* name) { return method_of(type, sign, name) != nullptr; }

Sending::Sending() {
    if (sends++ == 0) thrown_name.clear(), thrown_reason.clear();
}
Sending::~Sending() { --sends; }

void rethrow_foreign(const std::string& call) {
    const std::string name = thrown_name.empty() ? "NSException" : thrown_name;
    throw Fault("exception", call, thrown_reason.empty() ? "it gave no reason" : thrown_reason, name);
}

Owned::~Owned() {
    if (object_ == nullptr) return;
    try {
        call<void>(object_, "release");
    } catch (const Fault&) {  // a destructor has nobody to tell; the object stays, which harms nothing but memory
    }
}

Pool::Pool() : pool_(pool_init(pool_alloc.on_class())) {}

Pool::~Pool() {
    try {
        pool_drain(pool_);
    } catch (const Fault&) {  // as above
    }
}

}  // namespace torchane::apple
