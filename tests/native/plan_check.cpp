// Runs a recorded plan, PLAN_FILE: programs as tapes, and the runs of a training step with what went in and came out on the
// machine that recorded it (tests/native/recorded_plan.py). Tapes are in the engine's arithmetic or exact; a step of fp16 is allowed.
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "staging.h"
#include "tape.h"

using namespace torchane;

namespace {

std::ifstream file;

int64_t number() {
    int64_t value;
    if (!(file >> value)) std::printf("FAILED: the record ends early\n"), std::exit(1);
    return value;
}

std::vector<int64_t> numbers() {
    std::vector<int64_t> made(static_cast<size_t>(number()));
    for (int64_t& value : made) value = number();
    return made;
}

Sizes sizes() {
    const std::vector<int64_t> read = numbers();
    return Sizes(read.begin(), read.end());
}

std::vector<half_t> halves() {
    const std::vector<int64_t> read = numbers();
    return std::vector<half_t>(read.begin(), read.end());
}

Place place() {
    const int space = static_cast<int>(number());
    return {space, number()};
}

std::unique_ptr<Step> step(const std::string& kind) {
    if (kind == "chain") {
        auto made = std::make_unique<Chain>();
        made->sizes = sizes(), made->row = number(), made->whole_rows = number() != 0, made->registers = static_cast<int>(number());
        for (int64_t left = number(); left > 0; --left) {
            const Place where = place();
            const Sizes strides = sizes();
            made->operands.push_back({where, strides, number()});
        }
        for (int64_t left = number(); left > 0; --left) {
            int fields[7];
            for (int& field : fields) field = static_cast<int>(number());
            made->micros.push_back({static_cast<Chain::Family>(fields[0]), fields[1], static_cast<Form>(fields[2]), fields[3] != 0, fields[4], fields[5], fields[6]});
        }
        made->check();
        return made;
    }
    if (kind == "matmul") {
        auto made = std::make_unique<Matmul>();
        made->x = place(), made->y = place(), made->out = place();
        made->m = number(), made->n = number(), made->k = number();
        made->transpose_x = number() != 0, made->transpose_y = number() != 0;
        made->batch = sizes(), made->x_strides = sizes(), made->y_strides = sizes();
        return made;
    }
    if (kind == "copy") {
        auto made = std::make_unique<Copy>();
        made->x = place(), made->out = place();
        made->sizes = sizes(), made->x_strides = sizes(), made->out_strides = sizes();
        return made;
    }
    if (kind == "reduce") {
        auto made = std::make_unique<Reduce>();
        made->x = place(), made->out = place();
        made->reduction = static_cast<Reduction>(number());
        made->sizes = sizes();
        for (int64_t is_kept : numbers()) made->kept.push_back(is_kept != 0);
        return made;
    }
    if (kind == "softmax") {
        auto made = std::make_unique<SoftmaxColumns>();
        made->x = place(), made->out = place();
        made->outer = number(), made->entries = number(), made->inner = number();
        return made;
    }
    std::printf("FAILED: no step is called %s\n", kind.c_str());
    std::exit(1);
}

std::unique_ptr<Tape> tape() {
    std::string name;
    file >> name;
    std::vector<Sizes> inputs(static_cast<size_t>(number()));
    for (Sizes& port : inputs) port = sizes();
    std::vector<Sizes> outputs(static_cast<size_t>(number()));
    for (Sizes& port : outputs) port = sizes();
    const std::vector<half_t> constants = halves();
    const int64_t scratch = number();
    auto made = std::make_unique<Tape>(name, inputs, outputs, constants.data(), static_cast<int64_t>(constants.size()), scratch);
    for (int64_t left = number(); left > 0; --left) {
        std::string kind;
        file >> kind;
        made->append(step(kind), {kind});
    }
    return made;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) return 2;
    file.open(arguments[1]);
    std::vector<std::unique_ptr<Tape>> tapes;
    for (int64_t left = number(); left > 0; --left) tapes.push_back(tape());
    Executor executor;
    int64_t compared = 0, furthest = 0;
    const int64_t runs = number();
    for (int64_t run = 0; run < runs; ++run) {
        const Tape& of = *tapes[static_cast<size_t>(number())];
        std::vector<std::vector<half_t>> given, want, got;
        std::vector<half_t*> in, out;
        for (size_t port = 0; port < of.inputs().size(); ++port) given.push_back(halves());
        for (const Sizes& port : of.outputs()) want.push_back(halves()), got.emplace_back(static_cast<size_t>(product(port)));
        for (auto& array : given) in.push_back(array.data());
        for (auto& array : got) out.push_back(array.data());
        executor.run(of, in, out);
        for (size_t port = 0; port < got.size(); ++port) {
            float largest = 0;
            for (half_t value : want[port]) largest = std::max(largest, std::abs(half_to_float(value)));
            for (size_t i = 0; i < got[port].size(); ++i, ++compared) {
                const float off = std::abs(half_to_float(got[port][i]) - half_to_float(want[port][i]));
                if (got[port][i] != want[port][i]) ++furthest;
                // two roundings of the largest: sums are in fp32, in an order that depends on the processor
                if (!(off <= 0x1p-9f * largest)) {
                    std::printf("FAILED: run %d, output %d, number %d: %g, recorded %g\n", static_cast<int>(run), static_cast<int>(port), static_cast<int>(i),
                                static_cast<double>(half_to_float(got[port][i])), static_cast<double>(half_to_float(want[port][i])));
                    return 1;
                }
            }
        }
    }
    std::printf("%d runs, %lld numbers as recorded, %lld of them a rounding off\n", static_cast<int>(runs), static_cast<long long>(compared), static_cast<long long>(furthest));
    return 0;
}
