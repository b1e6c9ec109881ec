// The Python door of the native code. Python checks meaning; C++ checks shapes and computes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace torchane;

NB_MODULE(_native, m) {
    m.doc() = "The twin's kernels. Use torchane.native, which says what to do where this is not built.";

    m.def("cpu_features", [] {
        const CpuFeatures& cpu = cpu_features();
        return std::map<std::string, bool>{{"avx2", cpu.avx2}, {"avx512", cpu.avx512}, {"amx", cpu.amx}};
    });
    m.def("isas", [] {
        std::vector<std::string> names;
        for (Isa isa : available_isas()) names.emplace_back(isa_name(isa));
        return names;
    });
    m.def("get_isa", [] { return std::string(isa_name(active_isa())); });
    m.def("set_isa", [](const std::string& name) {
        for (Isa isa : available_isas())
            if (name == isa_name(isa)) return set_isa(isa);
        throw std::invalid_argument("this processor or build has no instruction set \"" + name + "\"; see isas().");
    }, "name"_a);
    m.def("get_threads", &threads);
    m.def("set_threads", [](int count) {
        if (count < 1) throw std::invalid_argument("set_threads: " + std::to_string(count) + " threads; at least 1 is needed.");
        set_threads(count);
    }, "count"_a);
}
