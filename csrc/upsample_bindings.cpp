// Raw pointers in, nothing of torch. Arguments are checked in upsampling.py; see upsample.h and sum_maps.h for the contracts.
#include "upsample_bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "sum_maps.h"
#include "upsample.h"

namespace py = pybind11;

namespace depthg {

void bind_upsample(py::module_& m) {
  using Address = std::uintptr_t;  // of memory that the caller keeps alive
  m.def(
      "upsample_argmax",
      [](Address scores, std::array<int64_t, 3> shape, std::array<int64_t, 3> strides, int64_t first_cell,
         std::array<int64_t, 2> size, std::array<int64_t, 2> rows, Address ids, int threads) {
        ScoreMaps s;
        s.maps = shape[0], s.rows = shape[1], s.columns = shape[2];
        s.stride_map = strides[0], s.stride_row = strides[1], s.stride_column = strides[2];
        // Where rows 0 of the maps and of the ids would lie: the rows before the first ones are never touched.
        s.scores = reinterpret_cast<const float*>(scores - first_cell * s.stride_row * static_cast<int64_t>(sizeof(float)));
        s.height = size[0], s.width = size[1];
        s.first_row = rows[0], s.end_row = rows[1];
        s.ids = reinterpret_cast<void*>(ids - s.first_row * s.width * (s.maps < 256 ? 1 : 2));
        upsample_argmax(s, threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "sum_maps",
      [](const std::vector<std::array<int64_t, 3>>& shapes, const std::vector<Address>& vectors, const std::vector<Address>& values,
         std::array<int64_t, 4> shape, Address out, int threads) {
        SumOfMaps s;
        s.images = shape[0], s.height = shape[1], s.width = shape[2], s.dim = shape[3];
        s.out = reinterpret_cast<float*>(out);
        for (size_t i = 0; i < shapes.size(); ++i) {
          s.maps.push_back({shapes[i][0], shapes[i][1], shapes[i][2], reinterpret_cast<const float*>(vectors[i]),
                              reinterpret_cast<const float*>(values[i])});
        }
        sum_maps(s, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace depthg
