// Raw pointers in, nothing of torch. Arguments are checked in depthg/upsampling.py; see upsample.h for the contract.
#include "upsample_bindings.h"

#include <pybind11/stl.h>

#include <array>

#include "upsample.h"

namespace py = pybind11;

namespace depthg {

void bind_upsample(py::module_& m) {
  using Address = std::uintptr_t;  // of memory that the caller keeps alive
  m.def(
      "upsample_argmax",
      [](Address scores, std::array<int64_t, 3> shape, std::array<int64_t, 3> strides, std::array<int64_t, 2> size, Address ids,
         int threads) {
        ScoreMaps s;
        s.maps = shape[0], s.rows = shape[1], s.columns = shape[2];
        s.stride_map = strides[0], s.stride_row = strides[1], s.stride_column = strides[2];
        s.scores = reinterpret_cast<const float*>(scores);
        s.height = size[0], s.width = size[1];
        s.ids = reinterpret_cast<void*>(ids);
        upsample_argmax(s, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace depthg
