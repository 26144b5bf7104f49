// Adds the mean field of a dense CRF to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace depthg {

void bind_crf(pybind11::module_& m);

}  // namespace depthg
