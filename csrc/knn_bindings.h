// Adds the running top-k of similarity tiles to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace depthg {

void bind_knn(pybind11::module_& m);

}  // namespace depthg
