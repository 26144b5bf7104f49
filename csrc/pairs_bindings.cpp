// Raw pointers in, nothing of torch. Arguments are put together in kernels/pair_pass.py; see pairs.h for the contract.
#include "pairs_bindings.h"

#include "pairs.h"

namespace py = pybind11;

namespace depthg {
namespace {

using Address = std::uintptr_t;  // of memory that the caller keeps alive, 0 for none

// A pointer field of PairPass as a property that takes an address.
template <class T>
void pointer(py::class_<PairPass>& c, const char* name, T* PairPass::*field) {
  c.def_property(
      name, [field](const PairPass& s) { return reinterpret_cast<Address>(s.*field); },
      [field](PairPass& s, Address address) { s.*field = reinterpret_cast<T*>(address); });
}

}  // namespace

void bind_pairs(py::module_& m) {
  py::class_<PairPass> c(m, "PairPass", "One pass over image pairs; see csrc/pairs.h.");
  c.def(py::init<>());
  c.def_readwrite("pairs", &PairPass::pairs).def_readwrite("images_a", &PairPass::images_a);
  c.def_readwrite("images_b", &PairPass::images_b).def_readwrite("p", &PairPass::p).def_readwrite("q", &PairPass::q);
  c.def_readwrite("c", &PairPass::c).def_readwrite("k", &PairPass::k).def_readwrite("d", &PairPass::d);
  c.def_readwrite("shift", &PairPass::shift).def_readwrite("limit", &PairPass::limit);
  c.def_readwrite("alpha", &PairPass::alpha).def_readwrite("alpha_depth", &PairPass::alpha_depth);
  c.def_readwrite("clamp", &PairPass::clamp).def_readwrite("limited", &PairPass::limited);
  c.def_readwrite("symmetric", &PairPass::symmetric).def_readwrite("same_bank", &PairPass::same_bank);
  pointer(c, "i", &PairPass::i);
  pointer(c, "j", &PairPass::j);
  pointer(c, "codes_a", &PairPass::codes_a);
  pointer(c, "codes_b", &PairPass::codes_b);
  pointer(c, "rows_a", &PairPass::rows_a);
  pointer(c, "rows_b", &PairPass::rows_b);
  pointer(c, "feats_a", &PairPass::feats_a);
  pointer(c, "feats_b", &PairPass::feats_b);
  pointer(c, "mean_a", &PairPass::mean_a);
  pointer(c, "mean_b", &PairPass::mean_b);
  pointer(c, "weights", &PairPass::weights);
  pointer(c, "depth_a", &PairPass::depth_a);
  pointer(c, "depth_b", &PairPass::depth_b);
  pointer(c, "values", &PairPass::values);
  pointer(c, "d_a", &PairPass::d_a);
  pointer(c, "d_b", &PairPass::d_b);
  pointer(c, "d_a_depth", &PairPass::d_a_depth);
  pointer(c, "d_b_depth", &PairPass::d_b_depth);
  m.def("pair_pass", &pair_pass, py::call_guard<py::gil_scoped_release>());
  m.def(
      "pack_panels",
      [](Address x, int64_t images, int64_t points, int64_t channels, bool normalize, Address panels, Address rows, Address mean,
         int threads) {
        pack_panels(reinterpret_cast<const float*>(x), images, points, channels, normalize, reinterpret_cast<float*>(panels),
                    reinterpret_cast<float*>(rows), reinterpret_cast<float*>(mean), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "code_gradient",
      [](Address codes, Address d_terms, Address upstream, int64_t terms, int64_t vectors, int64_t k, Address d_codes, int threads) {
        code_gradient(reinterpret_cast<const float*>(codes), reinterpret_cast<const float*>(d_terms),
                      reinterpret_cast<const float*>(upstream), terms, vectors, k, reinterpret_cast<float*>(d_codes), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.attr("panel_points") = kPanel;
}

}  // namespace depthg
