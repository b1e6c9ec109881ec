// The native code as a Python module. Python checks meaning; C++ checks shapes and computes.
// The interpreter lock is released around every loop over numbers.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "apple/bindings.h"
#include "arrays.h"
#include "cpu.h"
#include "engine.h"
#include "fetch.h"
#include "lookup.h"
#include "loss.h"
#include "optimizer.h"
#include "pool.h"
#include "random.h"
#include "staging.h"
#include "tape.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace torchane;

namespace {

using Ops = std::vector<std::string>;
using PyPlace = std::pair<int, int64_t>;

Place place(const PyPlace& pair) { return {pair.first, pair.second}; }

std::tuple<float, int64_t, int64_t, int64_t> tuple_of(const Scan& scan) {
    return {scan.max_abs, scan.non_finite, scan.zeros, scan.count};
}

// One copy between a surface and a host array; `to` is written.
Staging job(nb::handle to, nb::handle from, double scale, Element to_element, bool bf16) {
    const Staging made{view(to, "dst", true), view(from, "src", false, bf16, to_element == Element::fp16), static_cast<float>(scale)};
    if (made.to.sizes != made.from.sizes)
        throw DeviceFault("dst has the shape " + shown(made.to.sizes) + " and src " + shown(made.from.sizes) + "; they must be equal.");
    if (made.to.element != to_element)
        throw DeviceFault(to_element == Element::fp16 ? "dst holds float32; a surface holds float16."
                                                      : "dst holds float16; what leaves a surface goes to float32.");
    if (to_element == Element::fp32 && made.from.element != Element::fp16)
        throw DeviceFault("src holds float32; a surface holds float16.");
    return made;
}

std::vector<Staging> jobs(const nb::list& list, Element to_element) {
    std::vector<Staging> made;
    for (nb::handle item : list) {
        const nb::tuple fields = nb::cast<nb::tuple>(item);
        if (fields.size() < 3 || fields.size() > 4)
            throw DeviceFault("a copy is (dst, src, scale) or (dst, src, scale, bf16), not " + std::to_string(fields.size()) + " values.");
        const bool bf16 = fields.size() == 4 && nb::cast<bool>(fields[3]);
        made.push_back(job(fields[0], fields[1], nb::cast<double>(fields[2]), to_element, bf16));
    }
    return made;
}

std::vector<Floats> all_floats(const nb::list& list, bool writable) {
    std::vector<Floats> made;
    for (nb::handle item : list) made.push_back(floats(item, "an array", writable));
    return made;
}

std::vector<half_t*> ports(const nb::sequence& given, const std::vector<Sizes>& sizes, const std::string& program,
                           const char* kind, bool writable) {
    if (nb::len(given) != sizes.size())
        throw DeviceFault(program + " has " + std::to_string(sizes.size()) + " " + kind + "s and was given " +
                          std::to_string(nb::len(given)) + ".");
    std::vector<half_t*> pointers;
    for (size_t port = 0; port < sizes.size(); ++port)
        pointers.push_back(dense_half(given[port], sizes[port], program + ": " + kind + " " + std::to_string(port), writable));
    return pointers;
}

void run(Executor& executor, const Tape& tape, const nb::sequence& given_inputs, const nb::sequence& given_outputs,
         std::vector<double>* seconds) {
    const std::vector<half_t*> inputs = ports(given_inputs, tape.inputs(), tape.name(), "input", false);
    const std::vector<half_t*> outputs = ports(given_outputs, tape.outputs(), tape.name(), "output", true);
    for (size_t o = 0; o < outputs.size(); ++o) {
        const half_t* end = outputs[o] + product(tape.outputs()[o]);
        const auto meets = [&](const half_t* other, const Sizes& sizes) { return other < end && outputs[o] < other + product(sizes); };
        for (size_t i = 0; i < inputs.size(); ++i)
            if (meets(inputs[i], tape.inputs()[i]))
                throw DeviceFault(tape.name() + ": output " + std::to_string(o) + " shares memory with input " + std::to_string(i) +
                                  ". Give every output a buffer of its own.");
        for (size_t p = 0; p < o; ++p)
            if (meets(outputs[p], tape.outputs()[p]))
                throw DeviceFault(tape.name() + ": outputs " + std::to_string(p) + " and " + std::to_string(o) +
                                  " share memory. Give every output a buffer of its own.");
    }
    nb::gil_scoped_release released;
    executor.run(tape, inputs, outputs, seconds);
}

std::vector<std::pair<Ops, double>> timed_run(Executor& executor, const Tape& tape, const nb::sequence& inputs, const nb::sequence& outputs) {
    std::vector<double> seconds;
    run(executor, tape, inputs, outputs, &seconds);
    std::vector<std::pair<Ops, double>> steps;
    for (size_t step = 0; step < seconds.size(); ++step) steps.emplace_back(tape.ops(step), seconds[step]);
    return steps;
}

void add_chain(Tape& tape, Ops ops, Sizes sizes, int64_t row, bool whole_rows, int registers,
               const std::vector<std::tuple<PyPlace, Sizes, int64_t>>& operands,
               const std::vector<std::tuple<int, int, int, bool, int, int, int>>& micros) {
    auto step = std::make_unique<Chain>();
    step->sizes = std::move(sizes);
    step->row = row;
    step->whole_rows = whole_rows;
    step->registers = registers;
    for (const auto& [where, strides, along_row] : operands) step->operands.push_back({place(where), strides, along_row});
    for (const auto& [family, op, form, once, d, a, b] : micros)
        step->micros.push_back({static_cast<Chain::Family>(family), op, static_cast<Form>(form), once, d, a, b});
    step->check();
    tape.append(std::move(step), std::move(ops));
}

Matmul matmul_of(PyPlace x, PyPlace y, PyPlace out, int64_t m, int64_t n, int64_t k, bool transpose_x, bool transpose_y, bool exact, Sizes batch,
                 Sizes x_strides, Sizes y_strides) {
    Matmul made;
    made.x = place(x), made.y = place(y), made.out = place(out);
    made.m = m, made.n = n, made.k = k;
    made.transpose_x = transpose_x, made.transpose_y = transpose_y, made.exact = exact;
    made.batch = std::move(batch), made.x_strides = std::move(x_strides), made.y_strides = std::move(y_strides);
    if (made.x_strides.size() != made.batch.size() || made.y_strides.size() != made.batch.size())
        throw std::invalid_argument("matmul: strides that do not fit the batch");
    return made;
}

void add_matmul(Tape& tape, Ops ops, PyPlace x, PyPlace y, PyPlace out, int64_t m, int64_t n, int64_t k, bool transpose_x,
                bool transpose_y, bool exact, Sizes batch, Sizes x_strides, Sizes y_strides) {
    tape.append(std::make_unique<Matmul>(matmul_of(x, y, out, m, n, k, transpose_x, transpose_y, exact, std::move(batch), std::move(x_strides),
                                                   std::move(y_strides))),
                std::move(ops));
}

void add_select(Tape& tape, Ops ops, PyPlace x, PyPlace y, PyPlace out, int64_t m, int64_t n, int64_t k, bool transpose_x, bool transpose_y,
                Sizes batch, Sizes x_strides, Sizes y_strides, bool is_left, const std::vector<std::tuple<int64_t, int64_t, int64_t, float>>& pieces) {
    auto step = std::make_unique<Selection>();
    step->product = matmul_of(x, y, out, m, n, k, transpose_x, transpose_y, true, std::move(batch), std::move(x_strides), std::move(y_strides));
    step->is_left = is_left;
    for (const auto& [to, from, count, factor] : pieces) step->pieces.push_back({to, from, count, float_to_half(factor)});
    step->check();
    tape.append(std::move(step), std::move(ops));
}

// A product of an attention: (x, y, out, (m, n, k), transpose_x, transpose_y, x_strides, y_strides); a place that is not used is (0, 0).
using PyProduct = std::tuple<PyPlace, PyPlace, PyPlace, std::tuple<int64_t, int64_t, int64_t>, bool, bool, Sizes, Sizes>;

Matmul product_of(const PyProduct& given) {
    Matmul made;
    const auto& [x, y, out, sizes, transpose_x, transpose_y, x_strides, y_strides] = given;
    made.x = place(x), made.y = place(y), made.out = place(out);
    std::tie(made.m, made.n, made.k) = sizes;
    made.transpose_x = transpose_x, made.transpose_y = transpose_y, made.x_strides = x_strides, made.y_strides = y_strides;
    return made;
}

void add_attention(Tape& tape, Ops ops, int64_t m, int64_t n, Sizes batch, const std::optional<PyProduct>& probabilities,
                   const std::optional<std::tuple<PyPlace, Sizes, int64_t>>& mask, Sizes live, std::vector<float> gap,
                   const std::optional<PyPlace>& p, const std::optional<PyProduct>& gradient,
                   const std::vector<std::tuple<PyProduct, bool, bool>>& readers) {
    auto step = std::make_unique<Attention>();
    step->m = m, step->n = n, step->batch = std::move(batch), step->live = std::move(live), step->gap = std::move(gap);
    step->has_probabilities = probabilities.has_value(), step->has_gradient = gradient.has_value(), step->has_mask = mask.has_value();
    step->keeps = p.has_value();
    if (probabilities) step->probabilities = product_of(*probabilities);
    if (gradient) step->gradient = product_of(*gradient);
    if (mask) step->mask = place(std::get<0>(*mask)), step->mask_strides = std::get<1>(*mask), step->mask_row = std::get<2>(*mask);
    if (p) step->p = place(*p);
    for (const auto& [one, of_gradient, is_left] : readers) step->readers.push_back({product_of(one), of_gradient, is_left});
    step->check();
    tape.append(std::move(step), std::move(ops));
}

void add_vocabulary(Tape& tape, Ops ops, size_t parts, const std::optional<PyProduct>& scores, std::pair<int64_t, int64_t> sizes, bool exact, bool is_forward,
                    PyPlace code, int64_t code_size, float left_out, const std::vector<PyPlace>& places, const std::optional<PyPlace>& kept) {
    auto step = std::make_unique<Vocabulary>();
    if (scores) step->scores = product_of(*scores);
    step->scores.x_strides.clear(), step->scores.y_strides.clear();  // there is one product
    if (scores.has_value() == (!is_forward && kept)) throw std::invalid_argument("vocabulary: scores are computed, or they are kept ones");
    step->scores.m = sizes.first, step->scores.n = sizes.second;
    step->scores.exact = exact;
    step->keeps = kept.has_value();
    if (kept) step->kept = place(*kept);
    step->is_forward = is_forward, step->code = place(code), step->code_size = code_size, step->left_out = float_to_half(left_out);
    if (places.size() != (is_forward ? 3 : 4)) throw std::invalid_argument("vocabulary: places that do not fit");
    if (is_forward) step->top = place(places[0]), step->total = place(places[1]), step->own = place(places[2]);
    else step->taken = place(places[0]), step->rest = place(places[1]), step->grad = place(places[2]), step->out = place(places[3]);
    if (kept) step->scores.out = step->kept;
    else if (!is_forward) step->scores.out = step->out;
    step->parts = tape.take_last(parts);
    step->check();
    tape.append(std::move(step), std::move(ops));
}

void add_copy(Tape& tape, Ops ops, PyPlace x, PyPlace out, Sizes sizes, Sizes x_strides, Sizes out_strides) {
    auto step = std::make_unique<Copy>();
    step->x = place(x), step->out = place(out);
    step->sizes = std::move(sizes), step->x_strides = std::move(x_strides), step->out_strides = std::move(out_strides);
    if (step->x_strides.size() != step->sizes.size() || step->out_strides.size() != step->sizes.size())
        throw std::invalid_argument("copy: strides that do not fit the sizes");
    tape.append(std::move(step), std::move(ops));
}

void add_reduce(Tape& tape, Ops ops, PyPlace x, PyPlace out, int reduction, Sizes sizes, std::vector<bool> kept) {
    auto step = std::make_unique<Reduce>();
    step->x = place(x), step->out = place(out);
    step->reduction = static_cast<Reduction>(reduction);
    step->sizes = std::move(sizes), step->kept = std::move(kept);
    if (reduction < 0 || reduction >= static_cast<int>(Reduction::count) || step->sizes.empty() || step->kept.size() != step->sizes.size())
        throw std::invalid_argument("reduce: an unknown reduction, or axes that do not fit the sizes");
    tape.append(std::move(step), std::move(ops));
}

void add_softmax(Tape& tape, Ops ops, PyPlace x, PyPlace out, int64_t outer, int64_t entries, int64_t inner) {
    auto step = std::make_unique<SoftmaxColumns>();
    step->x = place(x), step->out = place(out);
    step->outer = outer, step->entries = entries, step->inner = inner;
    tape.append(std::move(step), std::move(ops));
}

void bind_machine(nb::module_& m) {
    m.def("cpu_features", [] {
        const CpuFeatures& cpu = cpu_features();
        return std::map<std::string, bool>{{"avx2", cpu.avx2}, {"avx512", cpu.avx512}, {"amx", cpu.amx}};
    }, "What this processor and its system let programs use.");
    m.def("isas", [] {
        std::vector<std::string> names;
        for (Isa isa : available_isas()) names.emplace_back(isa_name(isa));
        return names;
    }, "The instruction sets that have kernels and run here, slowest first.");
    m.def("get_isa", [] { return std::string(isa_name(active_isa())); }, "The instruction set in use: the fastest unless set_isa chose.");
    m.def("set_isa", [](const std::string& name) {
        for (Isa isa : available_isas())
            if (name == isa_name(isa)) return set_isa(isa);
        throw DeviceFault("this processor or build has no instruction set \"" + name + "\"; native.isas() lists those it has.");
    }, "name"_a, "Chooses the kernels, for tests and measurements.");
    m.def("has_fast", &has_fast, "The kernels in use multiply bf16 numbers: arithmetic \"fast\" can run.");
    m.def("get_threads", &threads, "How many threads compute: the processors this process may use, unless set_threads chose.");
    m.def("set_threads", [](int count) {
        if (count < 1) throw DeviceFault("set_threads(" + std::to_string(count) + "): at least 1 thread is needed.");
        set_threads(count);
    }, "count"_a, "Any number gives the same bits.");
}

void bind_tape(nb::module_& m) {
    nb::class_<Tape>(m, "Tape", "A loaded program as steps; see csrc/steps.h. Places are (space, offset), sizes count numbers.")
        .def("__init__", [](Tape* tape, std::string name, std::vector<Sizes> inputs, std::vector<Sizes> outputs,
                            nb::handle constants, int64_t scratch, const std::string& arithmetic, const nb::tuple& shared) {
            static const std::map<std::string, Arithmetic> known{
                {"exact", Arithmetic::exact}, {"engine", Arithmetic::engine}, {"fast", Arithmetic::fast}};
            const auto chosen = known.find(arithmetic);
            if (chosen == known.end())
                throw DeviceFault("a tape's arithmetic is \"exact\", \"engine\" or \"fast\", not \"" + arithmetic + "\".");
            if (chosen->second == Arithmetic::fast && !has_fast())
                throw DeviceFault("no kernel here multiplies bf16 numbers, as \"fast\" does.");
            const View numbers = view(constants, "constants", false);
            const half_t* data = dense_half(constants, numbers.sizes, "constants", false);
            std::vector<Tape::Shared> outside;
            for (nb::handle one : shared) {
                const Sizes sizes = view(one, "a shared constant", false).sizes;
                outside.push_back({dense_half(one, sizes, "a shared constant", false), product(sizes)});
            }
            new (tape) Tape(std::move(name), std::move(inputs), std::move(outputs), data, product(numbers.sizes), scratch,
                            chosen->second, std::move(outside));
        }, "name"_a, "inputs"_a, "outputs"_a, "constants"_a, "scratch"_a, "arithmetic"_a = "exact", "shared"_a = nb::make_tuple(),
             nb::keep_alive<1, 8>())
        .def("chain", &add_chain, "ops"_a, nb::kw_only(), "sizes"_a, "row"_a, "whole_rows"_a, "registers"_a, "operands"_a, "micros"_a)
        .def("matmul", &add_matmul, "ops"_a, nb::kw_only(), "x"_a, "y"_a, "out"_a, "m"_a, "n"_a, "k"_a, "transpose_x"_a, "transpose_y"_a,
             "exact"_a, "batch"_a, "x_strides"_a, "y_strides"_a)
        .def("select", &add_select, "ops"_a, nb::kw_only(), "x"_a, "y"_a, "out"_a, "m"_a, "n"_a, "k"_a, "transpose_x"_a, "transpose_y"_a, "batch"_a,
             "x_strides"_a, "y_strides"_a, "is_left"_a, "pieces"_a)
        .def("attention", &add_attention, "ops"_a, nb::kw_only(), "m"_a, "n"_a, "batch"_a, "probabilities"_a.none(), "mask"_a.none(), "live"_a, "gap"_a,
             "p"_a.none(), "gradient"_a.none(), "readers"_a)
        .def("vocabulary", &add_vocabulary, "ops"_a, nb::kw_only(), "parts"_a, "scores"_a.none(), "sizes"_a, "exact"_a, "is_forward"_a, "code"_a, "code_size"_a,
             "left_out"_a, "places"_a, "kept"_a.none())
        .def("copy", &add_copy, "ops"_a, nb::kw_only(), "x"_a, "out"_a, "sizes"_a, "x_strides"_a, "out_strides"_a)
        .def("reduce", &add_reduce, "ops"_a, nb::kw_only(), "x"_a, "out"_a, "reduction"_a, "sizes"_a, "kept"_a)
        .def("softmax", &add_softmax, "ops"_a, nb::kw_only(), "x"_a, "out"_a, "outer"_a, "entries"_a, "inner"_a)
        .def("alias", [](Tape& tape, Ops ops) { tape.append(nullptr, std::move(ops)); }, "ops"_a)
        .def_prop_ro("steps", &Tape::steps);

    nb::class_<Executor>(m, "Executor", "Runs tapes one at a time and counts the MIL ops that they execute.")
        .def(nb::init<>())
        .def("run", [](Executor& executor, const Tape& tape, const nb::sequence& inputs, const nb::sequence& outputs) {
            run(executor, tape, inputs, outputs, nullptr);
        }, "tape"_a, "inputs"_a, "outputs"_a)
        .def("timed_run", &timed_run, "tape"_a, "inputs"_a, "outputs"_a, "run() that returns (MIL ops, seconds) for each step.")
        .def_prop_ro("executed", &Executor::executed)
        .def("reset_executed", &Executor::reset_executed);

    m.def("set_engine_tables", [](nb::handle unary, nb::handle reciprocal) {
        const half_t* functions = dense_half(unary, {static_cast<int64_t>(Unary::count), 65536}, "unary", false);
        set_engine_tables(functions, dense_half(reciprocal, {65536}, "reciprocal", false));
    }, "unary"_a, "reciprocal"_a,
       "The engine's functions of one fp16 number, by code of UNARY and by pattern, and its reciprocal in a softmax. Once, before any run.");

    const auto named = [&](const char* attribute, std::initializer_list<const char*> names) {
        nb::dict codes;
        int code = 0;
        for (const char* name : names) codes[name] = code++;
        m.attr(attribute) = codes;
    };
    named("UNARY", {"copy", "abs", "exp", "sqrt", "tanh", "sigmoid", "silu", "relu", "square", "cube", "inverse", "pow_minus_half", "log", "erf"});
    named("BINARY", {"add", "sub", "mul", "div", "max", "min", "pow"});
    named("FORM", {"vector_vector", "vector_scalar", "scalar_vector"});
    named("REDUCTION", {"sum", "mean", "max", "min"});
    m.attr("ATTENTION_ROWS") = Attention::ROWS;
    m.def("needs_finite", [] { return kernels().matmul.needs_finite; }, "Exact products of the kernels in use are made of parts that infinities lack.");
    named("FAMILY", {"unary", "binary", "row", "softmax", "table"});
}

void bind_staging(nb::module_& m) {
    m.def("stage", [](nb::handle dst, nb::handle src, double scale, bool bf16) {
        const std::vector<Staging> one{job(dst, src, scale, Element::fp16, bf16)};
        nb::gil_scoped_release released;
        stage(one);
    }, "dst"_a, "src"_a, "scale"_a = 1.0, "bf16"_a = false,
       "dst = fp16(src * scale), to nearest even; dst fp16 and src fp32, fp16, bool (0 or 1) or (bf16=True) bf16 as uint16, of one shape, any strides.");
    m.def("stage_many", [](const nb::list& list) {
        const std::vector<Staging> many = jobs(list, Element::fp16);
        nb::gil_scoped_release released;
        stage(many);
    }, "jobs"_a, "stage() for each (dst, src, scale) or (dst, src, scale, bf16) of a list.");
    m.def("unstage", [](nb::handle dst, nb::handle src, double scale) {
        const std::vector<Staging> one{job(dst, src, scale, Element::fp32, false)};
        std::vector<Scan> seen;
        {
            nb::gil_scoped_release released;
            seen = unstage(one);
        }
        return tuple_of(seen[0]);
    }, "dst"_a, "src"_a, "scale"_a = 1.0,
       "dst = fp32(src) * scale, any strides; returns (max_abs, non_finite, zeros, count) of src, a NaN having no size.");
    m.def("unstage_many", [](const nb::list& list) {
        const std::vector<Staging> many = jobs(list, Element::fp32);
        std::vector<Scan> seen;
        {
            nb::gil_scoped_release released;
            seen = unstage(many);
        }
        std::vector<std::tuple<float, int64_t, int64_t, int64_t>> tuples;
        for (const Scan& scan : seen) tuples.push_back(tuple_of(scan));
        return tuples;
    }, "jobs"_a, "unstage() for each (dst, src, scale) of a list; a list of what it returns.");
    m.def("scan", [](nb::handle src) {
        const View from = view(src, "src", false);
        if (from.element != Element::fp16) throw DeviceFault("src holds float32; a surface holds float16.");
        Scan seen;
        {
            nb::gil_scoped_release released;
            seen = scan(from);
        }
        return tuple_of(seen);
    }, "src"_a, "(max_abs, non_finite, zeros, count) of an fp16 array, a NaN having no size.");
    m.def("checksums", [](const nb::list& list) {
        std::vector<nb::ndarray<nb::ro, nb::device::cpu, nb::c_contig>> held;
        std::vector<Bytes> pieces;
        for (nb::handle item : list) {
            if (!nb::try_cast(item, held.emplace_back(), false)) throw DeviceFault("checksums: an array is not dense, or not on the host.");
            pieces.emplace_back(static_cast<const unsigned char*>(held.back().data()), static_cast<int64_t>(held.back().nbytes()));
        }
        nb::gil_scoped_release released;
        return checksums(pieces);
    }, "arrays"_a, "Of the bytes of each dense array of a list, 64 bits; the same for any number of threads.");
    m.def("sum_of_squares", [](const nb::list& arrays) {
        std::vector<Numbers> all;
        for (nb::handle array : arrays) all.push_back(numbers(array, "an array"));
        nb::gil_scoped_release released;
        return sum_of_squares(all);
    }, "arrays"_a, "Over all numbers of dense arrays, each fp32, a pair of fp16 and its factor, or a list of these, which are one array in pieces; in double, in a fixed order.");
    m.def("mean", [](nb::handle array) {
        const std::vector<Floats> one{floats(array, "the array", false)};
        if (one[0].second == 0) throw DeviceFault("mean: the array is empty.");
        nb::gil_scoped_release released;
        return sum(one) / static_cast<double>(one[0].second);
    }, "array"_a, "Of a dense fp32 array, in double, in a fixed order.");
    m.def("largest", [](nb::handle array) {
        const Floats one = floats(array, "the array", false);
        nb::gil_scoped_release released;
        return largest(one.first, one.second);
    }, "array"_a, "The largest magnitude of a dense fp32 array, NaN where one is in it, 0 where it is empty.");
    m.def("scale_in_place", [](const nb::list& arrays, double factor) {
        const std::vector<Floats> all = all_floats(arrays, true);
        nb::gil_scoped_release released;
        scale_in_place(all, static_cast<float>(factor));
    }, "arrays"_a, "factor"_a, "Multiplies dense fp32 arrays by a number.");
}

Updated updated(nb::handle item) {
    const nb::tuple fields = nb::cast<nb::tuple>(item);
    if (fields.size() != 5) throw DeviceFault("a parameter is (param, grad, exp_avg, exp_avg_sq, staged or None), not " + std::to_string(fields.size()) + " values.");
    const Floats param = floats(fields[0], "param", true), exp_avg = floats(fields[2], "exp_avg", true), exp_avg_sq = floats(fields[3], "exp_avg_sq", true);
    const Numbers grad = numbers(fields[1], "grad");
    const std::pair<const char*, int64_t> sizes[] = {{"grad", grad.size()}, {"exp_avg", exp_avg.second}, {"exp_avg_sq", exp_avg_sq.second}};
    for (const auto& [name, size] : sizes)
        if (size != param.second)
            throw DeviceFault(std::string(name) + " holds " + std::to_string(size) + " numbers and param " + std::to_string(param.second) + "; they must be as many.");
    half_t* staged = fields[4].is_none() ? nullptr : dense_half(fields[4], {param.second}, "staged", true);
    return {param.first, grad, exp_avg.first, exp_avg_sq.first, staged};
}

using Indices = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A dense fp32 array of two axes.
std::pair<float*, Sizes> matrix(nb::handle array, const char* what, bool writable) {
    const Sizes sizes = view(array, what, writable).sizes;
    if (sizes.size() != 2) throw DeviceFault(std::string(what) + " has the shape " + shown(sizes) + "; (rows, columns) is needed.");
    return {floats(array, what, writable).first, sizes};
}

void require_equal(const Sizes& sizes, const Sizes& wanted, const char* what) {
    if (sizes != wanted) throw DeviceFault(std::string(what) + " has the shape " + shown(sizes) + "; " + shown(wanted) + " is needed.");
}

void bind_lookup(nb::module_& m) {
    m.def("take_rows", [](nb::handle to, nb::handle table, const Indices& index) {
        const auto [rows, sizes] = matrix(to, "to", true);
        const auto [source, all] = matrix(table, "table", false);
        const int64_t n = static_cast<int64_t>(index.shape(0));
        require_equal(sizes, {n, all[1]}, "to");
        nb::gil_scoped_release released;
        if (!are_rows(index.data(), n, all[0])) return false;
        take_rows(rows, source, index.data(), n, all[1]);
        return true;
    }, "to"_a, "table"_a, "index"_a, "to (N, C) = rows of table (V, C) by int64 index (N,), all fp32 and dense; False, and nothing written, where there is no such row.");
    m.def("sum_rows", [](nb::handle to, nb::handle from, const Indices& index, int64_t skipped) {
        const auto [sums, all] = matrix(to, "to", true);
        const auto [source, sizes] = matrix(from, "from", false);
        const int64_t n = static_cast<int64_t>(index.shape(0));
        require_equal(sizes, {n, all[1]}, "from");
        nb::gil_scoped_release released;
        if (!are_rows(index.data(), n, all[0])) return false;
        sum_rows(sums, all[0], source, index.data(), n, all[1], skipped);
        return true;
    }, "to"_a, "from"_a, "index"_a, "skipped"_a = -1,
       "to (V, C): of each row the sum of those of from (N, C), in their order, whose int64 index (N,) it is; `skipped` gets none. False, and nothing written, "
       "where there is no such row.");
}

void bind_random(nb::module_& m) {
    using Words = nb::ndarray<uint64_t, nb::shape<TWISTER_WORDS>, nb::c_contig, nb::device::cpu>;
    m.def("bernoulli", [](nb::ndarray<bool, nb::c_contig, nb::device::cpu> dst, double p, Words words, int64_t given) {
        if (given < 0 || given > TWISTER_WORDS) throw DeviceFault("bernoulli: " + std::to_string(given) + " of " + std::to_string(TWISTER_WORDS) + " words cannot have been given.");
        if (!(p >= 0 && p <= 1)) throw DeviceFault("bernoulli: p is " + std::to_string(p) + "; it lies between 0 and 1.");
        Twister twister;
        std::copy_n(words.data(), TWISTER_WORDS, twister.words);
        twister.given = given;
        {
            nb::gil_scoped_release released;
            bernoulli(reinterpret_cast<uint8_t*>(dst.data()), static_cast<int64_t>(dst.size()), p, twister);
        }
        std::copy_n(twister.words, TWISTER_WORDS, words.data());
        return twister.given;
    }, "dst"_a.noconvert(), "p"_a, "words"_a.noconvert(), "given"_a,
       "Draws dense bools that are True with the probability p, as PyTorch's plain kernel for CPUs does; words, 624 uint64 of a Mersenne Twister, of which so "
       "many were given out, are changed. Returns how many are given out now.");
}

// A Fetch and what keeps its arrays alive.
struct HeldFetch : Fetch {
    using Arrays = std::vector<nb::ndarray<nb::device::cpu, nb::c_contig>>;
    HeldFetch(Arrays arrays, std::vector<std::pair<char*, int64_t>> pages) : Fetch(std::move(pages)), held(std::move(arrays)) {}
    Arrays held;
};

void bind_fetch(nb::module_& m) {
    nb::class_<HeldFetch>(m, "Fetch", "Fetches the memory of arrays from the system by writes that change nothing; see csrc/fetch.h.")
        .def("__init__", [](HeldFetch* self, const nb::list& list) {
            HeldFetch::Arrays held;
            std::vector<std::pair<char*, int64_t>> pages;
            for (nb::handle item : list) {
                if (!nb::try_cast(item, held.emplace_back(), false)) throw DeviceFault("fetch: an array is not dense, is read-only, or is not on the host.");
                pages.emplace_back(static_cast<char*>(held.back().data()), static_cast<int64_t>(held.back().nbytes()));
            }
            new (self) HeldFetch(std::move(held), std::move(pages));
        }, "arrays"_a)
        .def("run", &HeldFetch::run, nb::call_guard<nb::gil_scoped_release>(), "Until nothing is left that nobody has begun. Any number of threads at once.")
        .def_prop_ro("bytes", &HeldFetch::bytes, "That have been fetched, or are being.")
        .def("stop", &HeldFetch::stop, "Whoever runs it ends with the piece that it has begun.");
}

void bind_optimizer(nb::module_& m) {
    m.def("adamw", [](const nb::list& list, int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay, double grad_factor) {
        if (step < 1) throw DeviceFault("adamw: step is " + std::to_string(step) + "; the first is 1.");
        std::vector<Updated> params;
        for (nb::handle item : list) params.push_back(updated(item));
        const double steps = static_cast<double>(step);
        const auto single = [](double number) { return static_cast<float>(number); };
        const AdamW numbers{single(grad_factor), single(1 - beta1), single(beta2), single(1 - beta2), single(1 / std::sqrt(1 - std::pow(beta2, steps))),
                            single(eps), single(lr / (1 - std::pow(beta1, steps))), single(1 - lr * weight_decay)};
        nb::gil_scoped_release released;
        adamw(params, numbers);
    }, "params"_a, nb::kw_only(), "step"_a, "lr"_a, "beta1"_a, "beta2"_a, "eps"_a, "weight_decay"_a, "grad_factor"_a = 1.0,
       "One step of AdamW for each (param, grad, exp_avg, exp_avg_sq, staged): dense fp32 arrays of one size, of which grad is read, times grad_factor, "
       "and the others are changed; grad may be a pair of an fp16 array and its factor, or a list of pieces of either kind; staged, a flat fp16 array or None, gets the new param, and may be "
       "where an fp16 grad lies.");
}

// Throws where a target is no entry, before anything is written.
Scores scores(nb::handle logits, const Indices& targets, int64_t ignored) {
    const View rows = view(logits, "logits", false);
    if (rows.sizes.size() != 2) throw DeviceFault("logits has the shape " + shown(rows.sizes) + "; (tokens, vocabulary) is needed.");
    const Scores made{floats(logits, "logits", false).first, targets.data(), rows.sizes[0], rows.sizes[1], ignored};
    if (static_cast<int64_t>(targets.shape(0)) != made.rows)
        throw DeviceFault("there are " + std::to_string(targets.shape(0)) + " targets for " + std::to_string(made.rows) + " rows of logits.");
    for (int64_t row = 0; row < made.rows; ++row)
        if (const int64_t target = targets.data()[row]; target != ignored && (target < 0 || target >= made.entries))
            throw DeviceFault("target " + std::to_string(row) + " is " + std::to_string(target) + ", and the vocabulary has " + std::to_string(made.entries) + " entries.");
    return made;
}

float* row_floats(nb::handle array, const char* what, int64_t count, bool writable) {
    const Floats found = floats(array, what, writable);
    if (found.second != count)
        throw DeviceFault(std::string(what) + " holds " + std::to_string(found.second) + " numbers; " + std::to_string(count) + " are needed.");
    return found.first;
}

void bind_loss(nb::module_& m) {
    m.def("token_losses", [](nb::handle losses, nb::handle tops, nb::handle sums, nb::handle logits, const Indices& targets, int64_t ignored) {
        const Scores all = scores(logits, targets, ignored);
        float* const to = row_floats(losses, "losses", all.rows, true);
        float* const largest = row_floats(tops, "tops", all.rows, true);
        float* const added = row_floats(sums, "sums", all.rows, true);
        nb::gil_scoped_release released;
        token_losses(all, to, largest, added);
    }, "losses"_a, "tops"_a, "sums"_a, "logits"_a, "targets"_a, "ignored"_a,
       "losses (N,): cross-entropy of dense fp32 logits (N, V) with int64 targets (N,), in nats; 0 where a target is `ignored`. tops and sums are for token_gradients.");
    m.def("token_gradients", [](nb::handle grad, nb::handle weights, nb::handle tops, nb::handle sums, nb::handle logits, const Indices& targets, int64_t ignored) {
        const Scores all = scores(logits, targets, ignored);
        float* const to = row_floats(grad, "grad", all.rows * all.entries, true);
        const float* const factors = row_floats(weights, "weights", all.rows, false);
        const float* const largest = row_floats(tops, "tops", all.rows, false);
        const float* const added = row_floats(sums, "sums", all.rows, false);
        nb::gil_scoped_release released;
        token_gradients(all, factors, largest, added, to);
    }, "grad"_a, "weights"_a, "tops"_a, "sums"_a, "logits"_a, "targets"_a, "ignored"_a,
       "grad (N, V): of sum(weights * losses) in the logits. It may be the logits' own memory.");
}

}  // namespace

NB_MODULE(_native, m) {
    // An open device lives until the interpreter ends, which is no leak worth a warning to users.
    nb::set_leak_warnings(false);
    m.doc() = "The twin's kernels. Use torchane.native, which says what to do where this is not built.";
    nb::object device_error = nb::module_::import_("torchane.errors").attr("DeviceError");
    nb::register_exception_translator([](const std::exception_ptr& thrown, void* type) {
        try {
            std::rethrow_exception(thrown);
        } catch (const DeviceFault& fault) {
            PyErr_SetString(static_cast<PyObject*>(type), fault.what());
        }
    }, device_error.release().ptr());
    bind_machine(m);
    bind_tape(m);
    bind_staging(m);
    bind_optimizer(m);
    bind_random(m);
    bind_lookup(m);
    bind_fetch(m);
    bind_loss(m);
    apple::bind_bridge(m);
}
