// Runs a chain of element-wise ops block by block.
#include <algorithm>
#include <set>
#include <stdexcept>

#include "pool.h"
#include "steps.h"

namespace torchane {
namespace {

// 2 KiB of fp16: a dozen registers fit the first-level cache.
constexpr int64_t BLOCK = 1024;
// What one task computes at least: some ten microseconds.
constexpr int64_t TASK = 16 * BLOCK;
constexpr int64_t LINE = 32;  // numbers

}  // namespace

void Chain::run(const Run& run) const {
    const Kernels& table = kernels(run.arithmetic);
    const int64_t rows = product(sizes);
    const int64_t block = whole_rows ? row : std::min(row, BLOCK);
    const int64_t blocks = (row + block - 1) / block;  // per row
    const int64_t units = rows * blocks;
    const int64_t per_task = std::max<int64_t>(1, TASK / block);
    const int64_t register_size = (block + LINE - 1) / LINE * LINE;
    const bool needs_floats = std::any_of(micros.begin(), micros.end(), [](const Micro& m) { return m.family == Family::softmax; });
    const size_t count = operands.size();

    parallel((units + per_task - 1) / per_task, [&](int64_t task, int) {
        // Beside the registers: a pointer per operand, and the row that a softmax keeps in fp32.
        const int64_t registers_bytes = registers * register_size * static_cast<int64_t>(sizeof(half_t));
        const int64_t floats_bytes = needs_floats ? register_size * static_cast<int64_t>(sizeof(float)) : 0;
        const int64_t index_bytes = static_cast<int64_t>(sizeof(int64_t) * sizes.size());
        char* memory = thread_memory().take<char>(static_cast<size_t>(registers_bytes + floats_bytes + index_bytes) +
                                                  2 * count * sizeof(half_t*));
        half_t* own = reinterpret_cast<half_t*>(memory);
        float* floats = reinterpret_cast<float*>(memory + registers_bytes);
        int64_t* index = reinterpret_cast<int64_t*>(memory + registers_bytes + floats_bytes);
        half_t** begin_of_row = reinterpret_cast<half_t**>(memory + registers_bytes + floats_bytes + index_bytes);
        half_t** here = begin_of_row + count;

        int64_t unit = task * per_task;
        const int64_t last = std::min(units, unit + per_task);
        int64_t place = unit % blocks * block, rest = unit / blocks;
        for (size_t axis = sizes.size(); axis-- > 0; rest /= sizes[axis]) index[axis] = rest % sizes[axis];
        for (size_t o = 0; o < count; ++o) {
            begin_of_row[o] = run.at(operands[o].place);
            for (size_t axis = 0; axis < sizes.size(); ++axis) begin_of_row[o] += index[axis] * operands[o].strides[axis];
        }
        const auto at = [&](Value value) { return value >= 0 ? here[value] : own + ~value * register_size; };

        for (; unit < last; ++unit) {
            const int64_t n = std::min(block, row - place);
            for (size_t o = 0; o < count; ++o) here[o] = begin_of_row[o] + place * operands[o].along_row;
            for (const Micro& micro : micros) {
                half_t* d = at(micro.d);
                const half_t* a = at(micro.a);
                const int64_t length = micro.once ? 1 : n;
                switch (micro.family) {
                    case Family::unary: table.unary[micro.op](d, a, length); break;
                    case Family::binary: table.binary[micro.op][static_cast<int>(micro.form)](d, a, at(micro.b), length); break;
                    case Family::row: {
                        const float value = table.row[micro.op](a, n);
                        table.narrow(d, &value, 1, 1.0f);
                        break;
                    }
                    case Family::table: table.look_up(d, a, at(micro.b), length); break;
                    default: table.softmax_row(d, a, n, floats); break;
                }
            }
            place += block;
            if (place < row) continue;
            place = 0;
            for (size_t axis = sizes.size(); axis-- > 0;) {
                const bool wraps = ++index[axis] == sizes[axis];
                const int64_t steps = wraps ? 1 - sizes[axis] : 1;
                for (size_t o = 0; o < count; ++o) begin_of_row[o] += steps * operands[o].strides[axis];
                if (!wraps) break;
                index[axis] = 0;
            }
        }
    });
}

std::vector<Extent> Chain::extents() const {
    std::vector<Extent> found;
    for (const Operand& operand : operands) {
        int64_t last = (row - 1) * operand.along_row;
        for (size_t axis = 0; axis < sizes.size(); ++axis) last += (sizes[axis] - 1) * operand.strides[axis];
        found.push_back({operand.place, last});
    }
    std::set<Value> tables;  // one that several micros look up reaches no further than one that one does
    for (const Micro& micro : micros)
        if (micro.family == Family::table && tables.insert(micro.b).second) found[static_cast<size_t>(micro.b)].last += PATTERNS - 1;
    return found;
}

void Chain::check() const {
    const auto in = [](int value, int count) { return value >= 0 && value < count; };
    const auto known = [&](Value value) {
        return value >= 0 ? value < static_cast<int>(operands.size()) : ~value < registers;
    };
    const auto require = [](bool holds, const char* what) {
        if (!holds) throw std::invalid_argument(what);
    };
    require(row > 0 && registers >= 0, "chain: no row, or a negative number of registers");
    for (const Operand& operand : operands)
        require(operand.strides.size() == sizes.size() && in(static_cast<int>(operand.along_row), 2), "chain: strides that do not fit the domain");
    for (const Micro& micro : micros) {
        require(in(static_cast<int>(micro.family), static_cast<int>(Family::count)), "chain: an unknown family");
        require(known(micro.d) && known(micro.a), "chain: an unknown value");
        switch (micro.family) {
            case Family::unary: require(in(micro.op, static_cast<int>(Unary::count)), "chain: an unknown unary op"); break;
            case Family::binary:
                require(in(micro.op, static_cast<int>(Binary::count)) && known(micro.b), "chain: an unknown binary op or operand");
                require(in(static_cast<int>(micro.form), static_cast<int>(Form::count)), "chain: an unknown form");
                break;
            case Family::row:
                require(whole_rows && in(micro.op, static_cast<int>(Reduction::count)), "chain: a reduction without whole rows");
                break;
            case Family::table: require(known(micro.b) && micro.b >= 0, "chain: a table that is no operand"); break;
            default: require(whole_rows, "chain: a softmax without whole rows");
        }
    }
}

}  // namespace torchane
