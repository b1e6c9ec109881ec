// Route B: Espresso's e5rt_* functions. No Objective-C, dense buffers bound to ports by their names in the text.
//
//   config, compiler, options(engine only) ── compile(model.mil) ── function "main" ── operation ── ports ── stream
//
// A stream is encoded once and executed as often as its buffers stay; other buffers mean reset, prepare, bind, encode.
// Out-parameters come first in *_create and *_alloc, last in compile and retain; release takes a pointer to the handle.
// Source: sbryngelson/ANEForge (shipped on M1, M1 Max, M2 Pro, M5 Pro, macOS 26.5), one author.
#include <array>
#include <utility>

#include "e5_calls.h"
#include "program.h"

namespace torchane::apple {
namespace {

constexpr uint64_t ENGINE_ONLY = 4;  // the mask of devices; with another an op may run elsewhere unseen

// A handle with the function that releases it.
class Handle {
public:
    explicit Handle(const char* release) : release_(release) {}
    Handle(Handle&& other) noexcept : release_(other.release_), handle_(std::exchange(other.handle_, nullptr)) {}
    ~Handle() { reset(); }
    void** out() { return &handle_; }
    void* get() const { return handle_; }
    void reset() {
        if (handle_ == nullptr) return;
        try {
            e5_call<void**>(release_, &handle_);
        } catch (const Fault&) {  // called by a destructor, which has nobody to tell
        }
        handle_ = nullptr;
    }

private:
    const char* release_;
    void* handle_ = nullptr;
};

template <class... A>
void must(const char* name, A... args) {
    e5_check(name, e5_call<A...>(name, args...));
}

class E5Program final : public Program {
public:
    explicit E5Program(Source source) : Program(source.outputs), source_(std::move(source)) {}
    ~E5Program() override {
        try {
            unload();
        } catch (const Fault&) {  // a destructor has nobody to tell
        }
    }

    std::string directory() override { return source_.directory; }

    void compile() override {
        Pool pool;
        Handle config("e5rt_e5_compiler_config_options_release"), compiler("e5rt_e5_compiler_release"), options("e5rt_e5_compiler_options_release");
        const std::string cache = source_.directory + "/e5", text = source_.directory + "/model.mil";
        must<void**>("e5rt_e5_compiler_config_options_create", config.out());
        must<void*, const char*>("e5rt_e5_compiler_config_options_set_cache_bundle_location", config.get(), cache.c_str());
        must<void**, void*>("e5rt_e5_compiler_create_with_config", compiler.out(), config.get());
        must<void**>("e5rt_e5_compiler_options_create", options.out());
        must<void*, uint64_t>("e5rt_e5_compiler_options_set_compute_device_types_mask", options.get(), ENGINE_ONLY);
        must<void*, const char*>("e5rt_e5_compiler_options_set_segmenter", options.get(), "graph");
        library_.reset();
        must<void*, const char*, void*, void**>("e5rt_e5_compiler_compile", compiler.get(), text.c_str(), options.get(), library_.out());
    }

    void load() override {
        Pool pool;
        if (library_.get() == nullptr) compile();  // the handle is of this process; the bundle in the cache makes it quick
        try {
            must<void*, const char*, void**>("e5rt_program_library_retain_program_function", library_.get(), "main", function_.out());
            must<void**, void*>("e5rt_precompiled_compute_op_create_options_create_with_program_function", op_options_.out(), function_.get());
            must<void*, const char*>("e5rt_precompiled_compute_op_create_options_set_operation_name", op_options_.get(), "main");
            must<void*, int>("e5rt_precompiled_compute_op_create_options_set_allocate_intermediate_buffers", op_options_.get(), 1);
            must<void**, void*>("e5rt_execution_stream_operation_create_precompiled_compute_operation_with_options", operation_.out(), op_options_.get());
            take_ports("e5rt_execution_stream_operation_retain_input_port", source_.inputs);
            take_ports("e5rt_execution_stream_operation_retain_output_port", source_.outputs);
            must<void**>("e5rt_execution_stream_create", stream_.out());
        } catch (...) {
            unload();
            throw;
        }
        loaded_ = true;
    }

    void unload() override {
        Pool pool;
        stream_.reset();
        ports_.clear();
        operation_.reset();
        op_options_.reset();
        function_.reset();
        library_.reset();
        bound_.clear();
        loaded_ = false;
    }

    bool is_loaded() const override { return loaded_; }

protected:
    void evaluate(const Surfaces& inputs, const Surfaces& outputs) override {
        std::vector<void*> buffers;
        for (const Surfaces* all : {&inputs, &outputs})
            for (Surface* surface : *all) buffers.push_back(surface->buffer());
        if (buffers != bound_) {
            if (!bound_.empty()) {
                must<void*>("e5rt_execution_stream_reset", stream_.get());
                must<void*>("e5rt_execution_stream_operation_prepare_op_for_encode", operation_.get());
            }
            bound_.clear();
            for (size_t port = 0; port < buffers.size(); ++port)
                must<void*, void*>("e5rt_io_port_bind_buffer_object", ports_[port].get(), buffers[port]);
            must<void*, void*>("e5rt_execution_stream_encode_operation", stream_.get(), operation_.get());
            bound_ = buffers;
        }
        must<void*>("e5rt_execution_stream_execute_sync", stream_.get());
    }

private:
    void take_ports(const char* retain, const std::vector<std::string>& names) {
        for (const std::string& name : names) {
            ports_.emplace_back("e5rt_io_port_release");
            must<void*, const char*, void**>(retain, operation_.get(), name.c_str(), ports_.back().out());
        }
    }

    Source source_;
    Handle library_{"e5rt_program_library_release"}, function_{"e5rt_program_function_release"};
    Handle op_options_{"e5rt_precompiled_compute_op_create_options_release"}, operation_{"e5rt_execution_stream_operation_release"};
    Handle stream_{"e5rt_execution_stream_release"};
    std::vector<Handle> ports_;
    std::vector<void*> bound_;
    bool loaded_ = false;
};

}  // namespace

void e5_check(const char* name, int64_t status) {
    if (status == 0) return;
    auto* last = reinterpret_cast<const char* (*)()>(symbol("e5rt_get_last_error_message"));
    const char* text = last ? last() : nullptr;
    throw Fault("status", name, text && *text ? text : "it returned " + std::to_string(status), "e5rt", status);
}

std::shared_ptr<Program> make_e5_program(Source source) { return std::make_shared<E5Program>(std::move(source)); }

void check_e5_route() {
    static const std::array names = {
        "e5rt_e5_compiler_config_options_create", "e5rt_e5_compiler_config_options_release",
        "e5rt_e5_compiler_config_options_set_cache_bundle_location", "e5rt_e5_compiler_create_with_config", "e5rt_e5_compiler_release",
        "e5rt_e5_compiler_options_create", "e5rt_e5_compiler_options_release", "e5rt_e5_compiler_options_set_compute_device_types_mask",
        "e5rt_e5_compiler_options_set_segmenter", "e5rt_e5_compiler_compile", "e5rt_program_library_release",
        "e5rt_program_library_retain_program_function", "e5rt_program_function_release",
        "e5rt_precompiled_compute_op_create_options_create_with_program_function", "e5rt_precompiled_compute_op_create_options_release",
        "e5rt_precompiled_compute_op_create_options_set_operation_name",
        "e5rt_precompiled_compute_op_create_options_set_allocate_intermediate_buffers",
        "e5rt_execution_stream_operation_create_precompiled_compute_operation_with_options", "e5rt_execution_stream_operation_release",
        "e5rt_execution_stream_operation_retain_input_port", "e5rt_execution_stream_operation_retain_output_port", "e5rt_io_port_release",
        "e5rt_io_port_bind_buffer_object", "e5rt_buffer_object_alloc", "e5rt_buffer_object_get_data_ptr", "e5rt_buffer_object_release",
        "e5rt_execution_stream_create", "e5rt_execution_stream_release", "e5rt_execution_stream_reset",
        "e5rt_execution_stream_operation_prepare_op_for_encode", "e5rt_execution_stream_encode_operation", "e5rt_execution_stream_execute_sync"};
    for (const char* name : names) required(name);
}

}  // namespace torchane::apple
