// From Python's arrays to pointers: no copy, no conversion, and a DeviceError where one would be needed.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

#include "staging.h"
#include "steps.h"

namespace torchane {

// Becomes torchane.errors.DeviceError.
struct DeviceFault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

std::string shown(const Sizes& sizes);

// A strided array of fp16 or fp32 numbers; of booleans too if `booleans`, and uint16 stands for bf16 if `bf16`. `what` names it in errors.
View view(nanobind::handle array, const char* what, bool writable, bool bf16 = false, bool booleans = false);

// The start of a dense row-major fp16 array of these sizes.
half_t* dense_half(nanobind::handle array, const Sizes& sizes, const std::string& what, bool writable);

// A dense fp32 array.
Floats floats(nanobind::handle array, const char* what, bool writable);

// A dense fp32 array, or a pair of a dense fp16 one and the number that each of its numbers is multiplied by, or a list of these: one array in pieces.
Numbers numbers(nanobind::handle array, const char* what);

}  // namespace torchane
