// Raw pointers in, nothing of torch. Arguments are put together in depthg/knn.py; see knn.h for the contract.
#include "knn_bindings.h"

#include "knn.h"

namespace py = pybind11;

namespace depthg {
namespace {

using Address = std::uintptr_t;  // of memory that the caller keeps alive, 0 for none

template <class T>
void pointer(py::class_<KnnTile>& c, const char* name, T* KnnTile::*field) {
  c.def_property(
      name, [field](const KnnTile& s) { return reinterpret_cast<Address>(s.*field); },
      [field](KnnTile& s, Address address) { s.*field = reinterpret_cast<T*>(address); });
}

}  // namespace

void bind_knn(py::module_& m) {
  py::class_<KnnTile> c(m, "KnnTile", "A tile of similarities and the lists of its rows and columns; see csrc/knn.h.");
  c.def(py::init<>());
  c.def_readwrite("rows", &KnnTile::rows).def_readwrite("columns", &KnnTile::columns).def_readwrite("k", &KnnTile::k);
  c.def_readwrite("first_row", &KnnTile::first_row).def_readwrite("first_column", &KnnTile::first_column);
  pointer(c, "similarity", &KnnTile::similarity);
  pointer(c, "photo_row", &KnnTile::photo_row);
  pointer(c, "photo_column", &KnnTile::photo_column);
  pointer(c, "row_values", &KnnTile::row_values);
  pointer(c, "row_ids", &KnnTile::row_ids);
  pointer(c, "column_values", &KnnTile::column_values);
  pointer(c, "column_ids", &KnnTile::column_ids);
  m.def("knn_tile", &knn_tile, py::call_guard<py::gil_scoped_release>());
}

}  // namespace depthg
