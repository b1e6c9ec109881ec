// Route A2: _ANEClient and a directory with model.mil and the weight files.
//
//   sharedConnection ── modelAtURL: directory key: name ── compileModel, loadModel, evaluateWithModel, unloadModel
//
// The options say that the directory holds MIL text; the framework exports the key and the value, and where it does not
// their published text is used. Three public projects do this; none trains with it, so it is the second choice.
#include <filesystem>
#include <utility>

#include "program.h"
#include "selectors.h"

namespace torchane::apple {
namespace {

// An NSString constant of the framework, or its text.
id constant(const char* symbol_name, const char* otherwise) {
    if (auto* found = static_cast<id*>(symbol(symbol_name)); found != nullptr && *found != nullptr) return *found;
    return string(otherwise);
}

class ClientProgram final : public Program {
public:
    explicit ClientProgram(Source source) : Program(source.outputs), directory_(std::move(source.directory)), requests_(std::make_shared<Requests>()) {
        Pool pool;
        client_ = Owned(not_nil(shared_client.on_class(), shared_client.call()));
        const std::string key = std::filesystem::path(directory_).filename().string();
        model_ = Owned(not_nil(model_at.on_class(file_url(directory_, true), string(key)), model_at.call()));
        options_ = Owned(dictionary({{constant("kANEFModelTypeKey", "kANEFModelType"), constant("kANEFModelMILValue", "kANEFModelMIL")},
                                     {constant("kANEFNetPlistFilenameKey", "kANEFNetPlistFilenameKey"), string("model.mil")}}));
        evaluation_options_ = Owned(dictionary({}));
    }

    ~ClientProgram() override {
        try {
            if (loaded_) unload();
            Pool pool;
            requests_->clear();
            model_ = Owned();
            client_ = Owned();
            options_ = Owned();
            evaluation_options_ = Owned();
        } catch (const Fault&) {  // a destructor has nobody to tell; the daemon cleans up when the process ends
        }
    }

    std::string directory() override { return directory_; }

    bool is_compiled() override {
        Pool pool;
        return client_compiled_exists.fits() && client_compiled_exists(client_.get(), model_.get());
    }

    void purge() override {
        Pool pool;
        if (client_purge.fits()) client_purge(client_.get(), model_.get());
    }

    void compile() override { step(client_compile); }

    void load() override {
        step(client_load);
        loaded_ = true;
    }

    void unload() override {
        requests_->clear();
        loaded_ = false;
        step(client_unload);
    }

    bool is_loaded() const override { return loaded_; }

    Value attributes() override {
        Pool pool;
        return value_of(model_attributes.fits() ? model_attributes(model_.get()) : nullptr);
    }

protected:
    void evaluate(const Surfaces& inputs, const Surfaces& outputs) override {
        id error = nullptr;
        id request = requests_->request(requests_, *this, inputs, outputs);
        if (!client_evaluate(client_.get(), model_.get(), evaluation_options_.get(), request, QOS, &error))
            throw_error(client_evaluate.call(), error);
    }

private:
    void step(const Method<bool(id, id, uint32_t, id*)>& method) {
        Pool pool;
        id error = nullptr;
        if (!method(client_.get(), model_.get(), options_.get(), QOS, &error)) throw_error(method.call(), error);
    }

    std::string directory_;
    Owned client_, model_, options_, evaluation_options_;
    std::shared_ptr<Requests> requests_;
    bool loaded_ = false;
};

}  // namespace

std::shared_ptr<Program> make_client_program(Source source) { return std::make_shared<ClientProgram>(std::move(source)); }

void check_client_route() {
    shared_client.check();
    model_at.check();
    client_compile.check();
    client_load.check();
    client_evaluate.check();
    client_unload.check();
    surface_object.check();
    make_request.check();
}

}  // namespace torchane::apple
