// The bridge's part of the Python module: module `apple` of the extension.
#pragma once

#include <nanobind/nanobind.h>

namespace torchane::apple {

void bind_bridge(nanobind::module_& parent);

}  // namespace torchane::apple
