// A loaded program: its ports, its constants, and the steps that a run takes one after the other.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "memory.h"
#include "steps.h"

namespace torchane {

class Tape {
public:
    // A constant that lies outside of the tape, and its size.
    struct Shared {
        const half_t* data;
        int64_t size;
    };
    // Sizes in numbers. The constants are copied; the shared ones are not, and outlive the tape.
    Tape(std::string name, std::vector<Sizes> inputs, std::vector<Sizes> outputs, const half_t* constants,
         int64_t constants_size, int64_t scratch_size, Arithmetic arithmetic = Arithmetic::exact, std::vector<Shared> shared = {});

    // Appends a step that computes the named MIL ops; null where an op only gives its operand another name.
    // Throws std::invalid_argument for a step that leaves its spaces.
    void append(std::unique_ptr<Step> step, std::vector<std::string> ops);

    // Takes the last steps away again, for one that holds them. Throws std::invalid_argument where there are not so many.
    std::vector<std::unique_ptr<Step>> take_last(size_t count);

    const std::string& name() const { return name_; }
    const std::vector<Sizes>& inputs() const { return inputs_; }
    const std::vector<Sizes>& outputs() const { return outputs_; }
    size_t steps() const { return steps_.size(); }
    const std::vector<std::string>& ops(size_t step) const { return steps_[step].ops; }

private:
    friend class Executor;
    struct Entry {
        std::unique_ptr<Step> step;
        std::vector<std::string> ops;
    };
    int64_t space_size(int space) const;

    std::string name_;
    std::vector<Sizes> inputs_, outputs_;
    Memory constants_;
    int64_t constants_size_, scratch_size_;
    Arithmetic arithmetic_;
    std::vector<Shared> shared_;
    std::vector<Entry> steps_;
    std::map<std::string, int64_t> counts_;  // of the ops of all steps
};

// Runs tapes one at a time, in memory that all of them share, and counts the ops that they execute.
class Executor {
public:
    // The arrays are dense and of the declared sizes: the caller has checked them. Given `seconds`, appends how
    // long each step took.
    void run(const Tape& tape, const std::vector<half_t*>& inputs, const std::vector<half_t*>& outputs,
             std::vector<double>* seconds = nullptr);

    std::map<std::string, int64_t> executed() const;
    void reset_executed();

private:
    mutable std::mutex mutex_;
    Memory scratch_, shared_;
    std::map<std::string, int64_t> executed_;
};

}  // namespace torchane
