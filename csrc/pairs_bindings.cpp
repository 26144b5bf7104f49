// Raw pointers in, nothing of torch. Arguments are put together in kernels/terms_cpu.py; see pairs.h for the contract.
#include "pairs_bindings.h"

#include <string>

#include "pairs.h"

namespace py = pybind11;

namespace depthg {
namespace {

using Address = std::uintptr_t;  // of memory that the caller keeps alive, 0 for none

template <class T> T* at(Address address) { return reinterpret_cast<T*>(address); }

// A pointer field of PairPass as a property that takes an address.
template <class T, class Field> void pointer(py::class_<PairPass<T>>& c, const char* name, Field* PairPass<T>::*field) {
  c.def_property(
      name, [field](const PairPass<T>& s) { return reinterpret_cast<Address>(s.*field); },
      [field](PairPass<T>& s, Address address) { s.*field = at<Field>(address); });
}

// The module has everything twice: `suffix` is 32 for float and 64 for double.
template <class T> void bind_pairs_of(py::module_& m, const std::string& suffix) {
  using Pass = PairPass<T>;
  py::class_<Pass> c(m, ("PairPass" + suffix).c_str(), "One pass over image pairs; see csrc/pairs.h.");
  c.def(py::init<>());
  c.def_readwrite("pairs", &Pass::pairs).def_readwrite("images_a", &Pass::images_a).def_readwrite("images_b", &Pass::images_b);
  c.def_readwrite("p", &Pass::p).def_readwrite("q", &Pass::q);
  c.def_readwrite("c", &Pass::c).def_readwrite("k", &Pass::k).def_readwrite("d", &Pass::d);
  c.def_readwrite("shift", &Pass::shift).def_readwrite("decay", &Pass::decay).def_readwrite("limit", &Pass::limit);
  c.def_readwrite("alpha", &Pass::alpha).def_readwrite("alpha_depth", &Pass::alpha_depth);
  c.def_readwrite("exponential", &Pass::exponential).def_readwrite("clamp", &Pass::clamp);
  c.def_readwrite("limited", &Pass::limited).def_readwrite("symmetric", &Pass::symmetric);
  c.def_readwrite("same_bank", &Pass::same_bank);
  pointer(c, "i", &Pass::i);
  pointer(c, "j", &Pass::j);
  pointer(c, "codes_a", &Pass::codes_a);
  pointer(c, "codes_b", &Pass::codes_b);
  pointer(c, "rows_a", &Pass::rows_a);
  pointer(c, "rows_b", &Pass::rows_b);
  pointer(c, "feats_a", &Pass::feats_a);
  pointer(c, "feats_b", &Pass::feats_b);
  pointer(c, "mean_a", &Pass::mean_a);
  pointer(c, "mean_b", &Pass::mean_b);
  pointer(c, "weights", &Pass::weights);
  pointer(c, "depth_a", &Pass::depth_a);
  pointer(c, "depth_b", &Pass::depth_b);
  pointer(c, "values", &Pass::values);
  pointer(c, "d_a", &Pass::d_a);
  pointer(c, "d_b", &Pass::d_b);
  pointer(c, "d_a_depth", &Pass::d_a_depth);
  pointer(c, "d_b_depth", &Pass::d_b_depth);
  const auto without_gil = py::call_guard<py::gil_scoped_release>();
  m.def(("pair_pass" + suffix).c_str(), &pair_pass<T>, without_gil);
  m.def(
      ("pack_panels" + suffix).c_str(),
      [](Address x, int64_t images, int64_t points, int64_t channels, bool normalize, Address panels, Address rows, Address mean,
         int threads) {
        pack_panels(at<const T>(x), images, points, channels, normalize, at<T>(panels), at<T>(rows), at<T>(mean), threads);
      },
      without_gil);
  m.def(
      ("code_gradient" + suffix).c_str(),
      [](Address codes, Address d_terms, Address upstream, int64_t terms, int64_t vectors, int64_t k, Address d_codes,
         int threads) {
        code_gradient(at<const T>(codes), at<const T>(d_terms), at<const T>(upstream), terms, vectors, k, at<T>(d_codes), threads);
      },
      without_gil);
}

}  // namespace

void bind_pairs(py::module_& m) {
  bind_pairs_of<float>(m, "32");
  bind_pairs_of<double>(m, "64");
  m.attr("panel_points") = kPanel;
}

}  // namespace depthg
