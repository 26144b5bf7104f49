// depthg._C: raw pointers in, nothing of torch. Arguments are checked in kernels/fps.py; see fps.h for the contract.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "crf_bindings.h"
#include "fps.h"
#include "knn_bindings.h"
#include "pairs_bindings.h"
#include "sample.h"
#include "upsample_bindings.h"

namespace py = pybind11;
using depthg::Clouds;

namespace {

using Address = std::uintptr_t;  // of memory that the caller keeps alive, 0 for none

Clouds clouds(Address data, int dtype, int64_t batch, int64_t points, int64_t dims, std::array<int64_t, 3> stride, int64_t width,
              Address focals, float focal, Address lengths, Address starts, int64_t start, int64_t k, Address picks) {
  Clouds c;
  c.data = reinterpret_cast<const void*>(data);
  c.dtype = dtype;
  c.batch = batch;
  c.points = points;
  c.dims = dims;
  for (int i = 0; i < 3; ++i) c.stride[i] = stride[i];
  c.width = width;
  c.focals = reinterpret_cast<const float*>(focals);
  c.focal = focal;
  c.lengths = reinterpret_cast<const int64_t*>(lengths);
  c.starts = reinterpret_cast<const int64_t*>(starts);
  c.start = start;
  c.k = k;
  c.picks = reinterpret_cast<int64_t*>(picks);
  return c;
}

depthg::MapSamples map_samples(std::array<int64_t, 6> size, std::array<int64_t, 3> stride, Address cells, Address weights,
                               Address image) {
  return {size[0], size[1], size[2], size[3], size[4], size[5], stride[0], stride[1], stride[2],
          reinterpret_cast<const int64_t*>(cells), reinterpret_cast<const float*>(weights), reinterpret_cast<const int64_t*>(image)};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Farthest point sampling, correlation losses, sampling and up-sampling of maps and k-NN on raw pointers; use depthg.kernels "
      "instead.";

  py::class_<Clouds>(m, "Clouds", "Arguments of one call; `strides` are in elements.")
      .def(py::init([](Address data, int dtype, int64_t batch, int64_t points, int64_t dims, int64_t stride0, int64_t stride1,
                       int64_t stride2, int64_t width, Address focals, float focal, Address lengths, Address starts, int64_t start,
                       int64_t k, Address picks) {
        return clouds(data, dtype, batch, points, dims, {stride0, stride1, stride2}, width, focals, focal, lengths, starts, start, k,
                      picks);
      }));

  depthg::bind_pairs(m);
  depthg::bind_knn(m);
  depthg::bind_upsample(m);
  depthg::bind_crf(m);
  m.def("fps_cpu_isa", &depthg::fps_cpu_isa);
  m.def("cpu_vector_operations", &depthg::cpu_vector_operations, py::call_guard<py::gil_scoped_release>());
  m.def("fps_cpu_scratch_bytes", &depthg::fps_cpu_scratch_bytes);
  m.def(
      "fps_cpu",
      [](const Clouds& c, Address scratch, int threads) { depthg::fps_cpu(c, reinterpret_cast<void*>(scratch), threads); },
      py::call_guard<py::gil_scoped_release>());

  m.def(
      "sample_maps",
      [](std::array<int64_t, 6> size, std::array<int64_t, 3> stride, Address cells, Address weights, Address image, Address maps,
         Address out, int threads) {
        depthg::sample_maps(map_samples(size, stride, cells, weights, image), reinterpret_cast<const float*>(maps),
                            reinterpret_cast<float*>(out), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "sample_maps_backward",
      [](std::array<int64_t, 6> size, std::array<int64_t, 3> stride, Address cells, Address weights, Address image, Address d_out,
         Address d_maps, int threads) {
        depthg::sample_maps_backward(map_samples(size, stride, cells, weights, image), reinterpret_cast<const float*>(d_out),
                                     reinterpret_cast<float*>(d_maps), threads);
      },
      py::call_guard<py::gil_scoped_release>());

#if defined(DEPTHG_CUDA)
  m.attr("has_cuda") = true;
  m.def("fps_cuda_scratch_bytes", &depthg::fps_cuda_scratch_bytes);
  m.def(
      "fps_cuda",
      [](const Clouds& c, Address scratch, int device, Address stream) {
        depthg::fps_cuda(c, reinterpret_cast<void*>(scratch), device, reinterpret_cast<void*>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
#else
  m.attr("has_cuda") = false;
#endif
}
