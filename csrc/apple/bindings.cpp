#include "bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "program.h"
#include "selectors.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace torchane::apple {
namespace {

nb::object python(const Value& value) {
    if (const auto* text = std::get_if<std::string>(&value.held)) return nb::str(text->c_str());
    if (const auto* integer = std::get_if<int64_t>(&value.held)) return nb::int_(*integer);
    if (const auto* real = std::get_if<double>(&value.held)) return nb::float_(*real);
    if (const auto* items = std::get_if<std::vector<Value>>(&value.held)) {
        nb::list list;
        for (const Value& item : *items) list.append(python(item));
        return list;
    }
    nb::dict made;
    for (const auto& [name, item] : std::get<std::vector<std::pair<std::string, Value>>>(value.held)) made[name.c_str()] = python(item);
    return made;
}

void check_route(const std::string& route) {
    if (route == "memory") check_memory_route();
    else if (route == "client") check_client_route();
    else if (route == "e5") check_e5_route();
    else throw Fault("missing", route, "no route has this name");
}

std::shared_ptr<Program> make(const std::string& route, const std::string& directory, nb::bytes text,
                              const std::vector<std::pair<std::string, nb::bytes>>& weights, std::vector<std::string> inputs,
                              std::vector<std::string> outputs, bool bytes_alone) {
    Source source{directory, std::string(text.c_str(), text.size()), {}, std::move(inputs), std::move(outputs), bytes_alone};
    for (const auto& [path, bytes] : weights) source.weights.emplace_back(path, std::string(bytes.c_str(), bytes.size()));
    nb::gil_scoped_release released;
    check_route(route);
    return route == "memory" ? make_memory_program(std::move(source)) : route == "client" ? make_client_program(std::move(source)) : make_e5_program(std::move(source));
}

template <class T, class... A>
void describe(nb::dict& into, const char* name, const Method<T(A...)>& method) {
    if (!method.is_there()) return;
    try {
        if constexpr (std::is_same_v<T, id>) into[name] = nb::str(text(call<id>(not_nil(method.on_class(), method.call()), "description")).c_str());
        else into[name] = nb::cast(method.on_class());
    } catch (const Fault& fault) {
        into[name] = nb::str((std::string("not to be had: ") + fault.what()).c_str());
    }
}

nb::dict device_info() {
    Pool pool;
    nb::dict found;
    describe(found, "has_engine", device_has_engine);
    describe(found, "is_virtual", device_is_virtual);
    describe(found, "engines", device_engines);
    describe(found, "cores", device_cores);
    describe(found, "board", device_board);
    describe(found, "architecture", device_architecture);
    describe(found, "subtype", device_subtype);
    describe(found, "product", device_product);
    describe(found, "build", device_build);
    return found;
}

void run(Program& program, const std::vector<Surface*>& inputs, const std::vector<Surface*>& outputs) {
    nb::gil_scoped_release released;
    program.run(inputs, outputs);
}

// The surfaces of a device's buffers. False where one has none: it is another device's.
bool surfaces_of(nb::handle buffers, Surfaces& into) {
    const nb::object sequence = nb::steal(PySequence_Fast(buffers.ptr(), "buffers are given as a sequence"));
    if (!sequence.is_valid()) throw nb::python_error();
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence.ptr());
    static PyObject* const name = PyUnicode_InternFromString("surface");
    for (Py_ssize_t i = 0; i < count; ++i) {
        const nb::object surface = nb::steal(PyObject_GetAttr(PySequence_Fast_GET_ITEM(sequence.ptr(), i), name));
        Surface* found = nullptr;
        if (!surface.is_valid()) PyErr_Clear();
        if (!surface.is_valid() || !nb::try_cast(surface, found)) return false;
        into.push_back(found);
    }
    return true;
}

bool run_again(Program& program, nb::handle inputs, nb::handle outputs) {
    Surfaces given, results;
    given.reserve(16), results.reserve(16);
    if (!surfaces_of(inputs, given) || !surfaces_of(outputs, results)) return false;
    nb::gil_scoped_release released;
    return program.run_again(given, results);
}

nb::object running_now(int64_t owner) {
    const auto found = running(owner);
    return found ? nb::object(nb::make_tuple(found->name, found->key, found->limit_s, found->serial)) : nb::none();
}

}  // namespace

void bind_bridge(nb::module_& parent) {
    nb::module_ m = parent.def_submodule("apple", "The bridge to Apple's framework. Use torchane.runtime.ane.");
    nb::object error = nb::module_::import_("torchane.errors").attr("AppleError");
    nb::register_exception_translator([](const std::exception_ptr& thrown, void* type) {
        try {
            std::rethrow_exception(thrown);
        } catch (const Fault& fault) {
            const nb::tuple args = nb::make_tuple(fault.kind, fault.call, fault.text, fault.domain, fault.code);
            PyErr_SetObject(static_cast<PyObject*>(type), args.ptr());
        }
    }, error.release().ptr());

    m.def("open", [](const std::vector<std::string>& libraries) {
        nb::gil_scoped_release released;
        open(libraries);
    }, "libraries"_a, "Opens libraries by path and finds the Objective-C runtime in them.");
    m.def("is_open", &is_open);
    m.def("check_route", &check_route, "route"_a, nb::call_guard<nb::gil_scoped_release>(),
          "memory, client or e5: raises AppleError for the first class, selector, encoding or function that is not as the bridge expects.");
    m.def("encoding_of", [](const std::string& type, char sign, const std::string& name) { return encoding_of(type.c_str(), sign, name.c_str()); },
          "type"_a, "sign"_a, "name"_a, "The types of a selector, '' where it is not there. Sends nothing.");
    m.def("device_info", &device_info, "What _ANEDeviceInfo says of this machine, as far as it answers.");

    nb::class_<Surface>(m, "Surface", "Memory that host and engine both see: one-dimensional, a multiple of 64 KiB, zero.")
        .def("__init__", [](Surface* surface, const std::string& route, size_t size_bytes) {
            const auto kind = route == "e5" ? Surface::Kind::buffer : Surface::Kind::iosurface;
            nb::gil_scoped_release released;
            new (surface) Surface(kind, size_bytes);
        }, "route"_a, "size_bytes"_a)
        .def_prop_ro("capacity_bytes", &Surface::capacity_bytes)
        .def_prop_ro("is_held", &Surface::is_held)
        .def("hold", &Surface::hold, "Locks the memory for the host until the next run, which takes it for its own time.")
        .def_prop_ro("memory", [](nb::handle self) {
            Surface& surface = nb::cast<Surface&>(self);
            surface.hold();
            return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(surface.data(), {surface.capacity_bytes()}, self);
        }, "All of it as bytes, held for the host. No copy.");

    nb::class_<Program>(m, "Program", "A program on one route; see csrc/apple/program.h.")
        .def_prop_ro("identifier", &Program::identifier)
        .def_prop_ro("directory", &Program::directory)
        .def_prop_ro("is_loaded", &Program::is_loaded)
        .def("is_compiled", &Program::is_compiled, nb::call_guard<nb::gil_scoped_release>())
        .def("purge", &Program::purge, nb::call_guard<nb::gil_scoped_release>())
        .def("compile", &Program::compile, nb::call_guard<nb::gil_scoped_release>())
        .def("load", &Program::load, nb::call_guard<nb::gil_scoped_release>())
        .def("unload", &Program::unload, nb::call_guard<nb::gil_scoped_release>())
        .def("attributes", [](Program& program) { return python(program.attributes()); })
        .def("bind", &Program::bind, "inputs"_a, "outputs"_a, "output_bytes"_a)
        .def("run", &run, "inputs"_a, "outputs"_a)
        .def("run_again", &run_again, "inputs"_a, "outputs"_a,
             "For buffers, which have a surface each. True: it has run. False: it has not, for these surfaces are new to it, or it is not loaded.")
        .def("watch", &Program::watch, "owner"_a, "name"_a, "key"_a, "limit_s"_a, "What running(owner) tells while it runs. owner: not 0.");
    m.def("running", &running_now, "owner"_a, "(name, key, limit_s, serial) of the run that is on the engine now, if it is this owner's; else None.");
    m.def("make", &make, "route"_a, "directory"_a, "text"_a, "weights"_a, "inputs"_a, "outputs"_a, "bytes_alone"_a = false,
          "A program that is neither compiled nor loaded yet. bytes_alone: another form of the weights' entries, for a probe.");
}

}  // namespace torchane::apple
