#include "tape.h"

#include <chrono>
#include <cstring>
#include <stdexcept>

namespace torchane {

Tape::Tape(std::string name, std::vector<Sizes> inputs, std::vector<Sizes> outputs, const half_t* constants,
           int64_t constants_size, int64_t scratch_size, Arithmetic arithmetic, std::vector<Shared> shared)
    : name_(std::move(name)), inputs_(std::move(inputs)), outputs_(std::move(outputs)), constants_size_(constants_size),
      scratch_size_(scratch_size), arithmetic_(arithmetic), shared_(std::move(shared)) {
    const size_t bytes = static_cast<size_t>(constants_size) * sizeof(half_t);
    if (bytes > 0) std::memcpy(constants_.take(bytes), constants, bytes);
}

int64_t Tape::space_size(int space) const {
    if (space == 0) return scratch_size_;
    if (space == 1) return constants_size_;
    const size_t port = static_cast<size_t>(space) - 2;
    if (space >= 2 && port < inputs_.size()) return product(inputs_[port]);
    const size_t ports = inputs_.size() + outputs_.size();
    if (space >= 2 && port < ports) return product(outputs_[port - inputs_.size()]);
    if (space >= 2 && port < ports + shared_.size()) return shared_[port - ports].size;
    throw std::invalid_argument("tape " + name_ + ": there is no space " + std::to_string(space));
}

void Tape::append(std::unique_ptr<Step> step, std::vector<std::string> ops) {
    if (step != nullptr)
        for (const Extent& extent : step->extents()) {
            const int64_t first = extent.place.offset, size = space_size(extent.place.space);
            if (first < 0 || extent.last < 0 || first + extent.last >= size)
                throw std::invalid_argument("tape " + name_ + ": a step for " + (ops.empty() ? "nothing" : ops.front()) +
                                            " reaches " + std::to_string(first + extent.last) + " in space " +
                                            std::to_string(extent.place.space) + " of " + std::to_string(size));
        }
    for (const std::string& op : ops) ++counts_[op];
    steps_.push_back({std::move(step), std::move(ops)});
}

std::vector<std::unique_ptr<Step>> Tape::take_last(size_t count) {
    if (count > steps_.size()) throw std::invalid_argument("tape " + name_ + ": it has fewer steps than are to be taken from it");
    std::vector<std::unique_ptr<Step>> taken;
    for (size_t step = steps_.size() - count; step < steps_.size(); ++step) {
        for (const std::string& op : steps_[step].ops) --counts_[op];
        if (steps_[step].step != nullptr) taken.push_back(std::move(steps_[step].step));
    }
    steps_.resize(steps_.size() - count);
    return taken;
}

void Executor::run(const Tape& tape, const std::vector<half_t*>& inputs, const std::vector<half_t*>& outputs,
                   std::vector<double>* seconds) {
    if (tape.arithmetic_ == Arithmetic::fast && !has_fast())
        throw std::invalid_argument("tape " + tape.name_ + " is in fast arithmetic, and the kernels in use have none");
    std::lock_guard lock(mutex_);
    std::vector<half_t*> spaces{scratch_.take<half_t>(static_cast<size_t>(tape.scratch_size_) * sizeof(half_t)),
                                static_cast<half_t*>(tape.constants_.data())};
    spaces.insert(spaces.end(), inputs.begin(), inputs.end());
    spaces.insert(spaces.end(), outputs.begin(), outputs.end());
    for (const Tape::Shared& shared : tape.shared_) spaces.push_back(const_cast<half_t*>(shared.data));  // no step writes there
    const Run run{spaces, shared_, tape.arithmetic_};
    for (const Tape::Entry& entry : tape.steps_) {
        const auto start = std::chrono::steady_clock::now();
        if (entry.step != nullptr) entry.step->run(run);
        if (seconds != nullptr)
            seconds->push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    for (const auto& [op, count] : tape.counts_)
        if (count > 0) executed_[op] += count;
}

std::map<std::string, int64_t> Executor::executed() const {
    std::lock_guard lock(mutex_);
    return executed_;
}

void Executor::reset_executed() {
    std::lock_guard lock(mutex_);
    executed_.clear();
}

}  // namespace torchane
