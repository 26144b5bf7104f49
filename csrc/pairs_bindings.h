// Adds the correlation losses of image pairs to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace depthg {

void bind_pairs(pybind11::module_& m);

}  // namespace depthg
