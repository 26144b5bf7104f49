// Adds the arg-max of score maps at another size, and the sum of up-sampled maps, to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace depthg {

void bind_upsample(pybind11::module_& m);

}  // namespace depthg
