// Raw pointers in, nothing of torch. Arguments are checked in kernels/dense_crf.py; see crf.h for the contract.
#include "crf_bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "crf.h"
#include "crf_lattice.h"

namespace py = pybind11;

namespace depthg {

void bind_crf(py::module_& m) {
  using Address = std::uintptr_t;  // of memory that the caller keeps alive, 0 for none
  using Kernel = std::array<double, 3>;  // weight, sxy, srgb
  py::class_<CrfMemory>(m, "CrfMemory", "Memory that one call of dense_crf leaves to the next one; not for two at a time.")
      .def(py::init<>())
      .def("bytes", &CrfMemory::bytes);
  m.def("dense_crf_fits", [](int64_t height, int64_t width, Kernel kernel) {
    return lattice_fits(height, width, {static_cast<float>(kernel[0]), kernel[1], kernel[2]});
  });
  m.def(
      "dense_crf_counts",
      [](int64_t height, int64_t width, Address rgb, Kernel kernel) {
        Lattice lattice;
        place_pixels(reinterpret_cast<const uint8_t*>(rgb), height, width, {static_cast<float>(kernel[0]), kernel[1], kernel[2]},
                     lattice);
        int64_t chained = 0;
        for (int j = 0; j < lattice.corners; ++j) {
          list_chains(lattice, j);
          chained += lattice.directions[j].cut.back();
        }
        return std::array<int64_t, 2>{lattice.vertices, chained};
      },
      "Vertices of the lattice of an image, and those that have a neighbour, summed over directions; for benchmarks and tests.");
  m.def(
      "dense_crf",
      [](std::array<int64_t, 3> size, Address rgb, const std::vector<int64_t>& classes, const std::vector<Address>& unary,
         const std::vector<Address>& marginals, const std::vector<Address>& ids, const std::vector<Kernel>& kernels, int iterations,
         CrfMemory& memory, int threads) {
        CrfImages s;
        s.images = size[0], s.height = size[1], s.width = size[2];
        s.rgb = reinterpret_cast<const uint8_t*>(rgb);
        s.iterations = iterations;
        for (size_t i = 0; i < classes.size(); ++i) {
          s.terms.push_back({classes[i], reinterpret_cast<const float*>(unary[i]), reinterpret_cast<float*>(marginals[i]),
                             reinterpret_cast<int16_t*>(ids[i])});
        }
        for (const Kernel& kernel : kernels) s.kernels.push_back({static_cast<float>(kernel[0]), kernel[1], kernel[2]});
        dense_crf(s, memory, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace depthg
