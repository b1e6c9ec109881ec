// Route A: _ANEInMemoryModel. The text and the weights go in as NSData; the daemon reads the same files from a directory.
//
//   descriptor(text, weights, nil) ── model ── setModelURL: our directory ── compile, load, evaluate, unload
//
// The weights are an empty dictionary where there are none (nil gives no descriptor) and the options plist is nil (an empty
// one is an invalid parameter). Without setModelURL: the directory is localModelPath, in the system's temporary folder.
#include <utility>

#include "program.h"
#include "selectors.h"

namespace torchane::apple {
namespace {

id weights_of(const Source& source) {
    std::vector<std::pair<id, id>> entries;
    for (const auto& [path, bytes] : source.weights) {
        std::vector<std::pair<id, id>> entry{{string("data"), data_of(bytes)}};
        if (!source.bytes_alone) entry.emplace_back(string("offset"), number(0));
        entries.emplace_back(string(path), dictionary(entry));
    }
    return dictionary(entries);
}

class MemoryProgram final : public Program {
public:
    explicit MemoryProgram(Source source) : Program(source.outputs), requests_(std::make_shared<Requests>()) {
        Pool pool;
        options_ = Owned(dictionary({}));
        id descriptor = describe_model.on_class(data_of(source.text), weights_of(source), nullptr);
        descriptor_ = Owned(not_nil(descriptor, describe_model.call()));
        model_ = Owned(not_nil(model_of.on_class(descriptor), model_of.call()));
        if (set_model_url.fits()) {
            set_model_url(model_.get(), file_url(source.directory, true));
            directory_ = source.directory;
        } else {
            directory_ = text(not_nil(model_path(model_.get()), model_path.call()));
        }
    }

    ~MemoryProgram() override {
        try {
            if (loaded_) unload();
            Pool pool;
            requests_->clear();
            model_ = Owned();
            descriptor_ = Owned();
            options_ = Owned();
        } catch (const Fault&) {  // a destructor has nobody to tell; the daemon cleans up when the process ends
        }
    }

    std::string identifier() override {
        Pool pool;
        return text(model_identifier(model_.get()));
    }

    std::string directory() override { return directory_; }

    bool is_compiled() override {
        Pool pool;
        return compiled_exists.fits() && compiled_exists(model_.get());
    }

    void purge() override {
        Pool pool;
        if (purge_compiled.fits()) purge_compiled(model_.get());
    }

    void compile() override { step(compile_model); }

    void load() override {
        step(load_model);
        loaded_ = true;
    }

    void unload() override {
        Pool pool;
        requests_->clear();
        id error = nullptr;
        loaded_ = false;  // whatever comes of it: a second attempt would be refused
        if (!unload_model(model_.get(), QOS, &error)) throw_error(unload_model.call(), error);
    }

    bool is_loaded() const override { return loaded_; }

    Value attributes() override {
        Pool pool;
        id inner = inner_model.fits() && model_attributes.fits() ? inner_model(model_.get()) : nullptr;
        return value_of(inner == nullptr ? nullptr : model_attributes(inner));
    }

protected:
    void evaluate(const Surfaces& inputs, const Surfaces& outputs) override {
        id error = nullptr;
        id request = requests_->request(requests_, *this, inputs, outputs);
        if (!evaluate_model(model_.get(), QOS, options_.get(), request, &error)) throw_error(evaluate_model.call(), error);
    }

private:
    void step(const Method<bool(uint32_t, id, id*)>& method) {
        Pool pool;
        id error = nullptr;
        if (!method(model_.get(), QOS, options_.get(), &error)) throw_error(method.call(), error);
    }

    Owned descriptor_, model_, options_;
    std::string directory_;
    std::shared_ptr<Requests> requests_;
    bool loaded_ = false;
};

}  // namespace

std::shared_ptr<Program> make_memory_program(Source source) { return std::make_shared<MemoryProgram>(std::move(source)); }

void check_memory_route() {
    describe_model.check();
    model_of.check();
    model_identifier.check();
    compile_model.check();
    load_model.check();
    evaluate_model.check();
    unload_model.check();
    surface_object.check();
    make_request.check();
    if (!set_model_url.fits()) model_path.check();
}

}  // namespace torchane::apple
