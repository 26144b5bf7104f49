// Mean field of a dense CRF on the CPU: memory, order of the work and threads. Lattices are made in crf_lattice.cpp, sums over
// them in crf_simd.cpp.
#include "crf_cpu.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>

#include "isa.h"
#include "parallel.h"

namespace depthg {

struct CrfMemory::Parts {
  Lattice lattices[2];        // spatial and bilateral, or any two kernels
  Buffer<float> blocks;       // of channels, [pixels, width] one after another
  Buffer<float> scratch;
  struct Vertices {
    Buffer<float> of[2];  // of a block, per lattice
  };
  std::vector<std::unique_ptr<Vertices>> vertices;  // one per block that is filtered at a time
  int64_t bytes() const {
    int64_t sum = lattices[0].bytes() + lattices[1].bytes() + blocks.bytes() + scratch.bytes();
    for (const auto& v : vertices) sum += v->of[0].bytes() + v->of[1].bytes();
    return sum;
  }
};

CrfMemory::CrfMemory() = default;
CrfMemory::~CrfMemory() = default;
int64_t CrfMemory::bytes() const {
  int64_t sum = 0;
  for (const auto& part : parts) sum += part->bytes();
  return sum;
}

namespace {

constexpr int64_t kPixelsPerTask = 1024;     // a multiple of kCrfTile
constexpr int64_t kSharedPixels = 1 << 18;   // larger images and their blocks are done one after another, by all threads
constexpr int kScattering = 2;               // threads at most: a kernel is splatted by one; more gather at vertices
constexpr double kImbalance = 1.34;          // of blocks among threads, that is cheaper than to wait after every direction

const CrfSplat& splat() {
  static const CrfSplat best = DEPTHG_BEST(CrfSplat, crf_splat);
  return best;
}
const CrfScatter& scatter() {
  static const CrfScatter best = DEPTHG_BEST(CrfScatter, crf_scatter);
  return best;
}
const CrfBlur& blur() {
  static const CrfBlur best = DEPTHG_BEST(CrfBlur, crf_blur);
  return best;
}
const CrfSlice& slice() {
  static const CrfSlice best = DEPTHG_BEST(CrfSlice, crf_slice);
  return best;
}
const CrfUpdate& update() {
  static const CrfUpdate best = DEPTHG_BEST(CrfUpdate, crf_update);
  return best;
}

// Runs work(task, rank) for every task; the first exception is thrown when all threads are done.
template <class Function>
void for_tasks(int threads, int64_t tasks, const Function& work) {
  threads = static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(tasks, 1)));
  if (threads == 1) {
    for (int64_t task = 0; task < tasks; ++task) work(task, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex guard;
  run_parallel(threads, [&](int rank) {
    try {
      for (int64_t task; (task = next++) < tasks;) work(task, rank);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

int64_t tasks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// The filters of one image.
class Filters {
 public:
  Filters(CrfMemory::Parts& memory, const std::vector<CrfKernel>& kernels, int threads)
      : memory_(memory), kernels_(kernels), count_(static_cast<int>(kernels.size())), threads_(threads) {}

  // Lattices whose shares are multiplied by the normalisation of their pixels.
  void prepare(const uint8_t* rgb, int64_t height, int64_t width, const std::vector<int>& widths) {
    bool kept[2] = {};
    for_tasks(threads_, count_, [&](int64_t task, int) {
      const int k = static_cast<int>(count_ - 1 - task);  // the larger one first
      const CrfKernel& kernel = kernels_[k];
      Lattice& l = memory_.lattices[k];
      kept[k] = l.ready && kernel.srgb == 0 && l.srgb == 0 && l.sxy == kernel.sxy && l.height == height && l.width == width;
      if (!kept[k]) place_pixels(rgb, height, width, kernel, l);
    });
    struct Task {
      int kernel, direction;
    };
    std::vector<Task> tasks;
    for (int k = count_ - 1; k >= 0; --k) {
      for (int j = 0; !kept[k] && j < memory_.lattices[k].corners; ++j) tasks.push_back({k, j});
    }
    for_tasks(threads_, tasks.size(), [&](int64_t n, int) { list_chains(memory_.lattices[tasks[n].kernel], tasks[n].direction); });
    for (int k = 0; height * width > kSharedPixels && k < count_; ++k) memory_.lattices[k].forget_keys();
    for (int k = 0; k < count_; ++k) {
      if (!kept[k]) normalise(k, height * width);
      memory_.lattices[k].ready = true;
    }
    apart_ = height * width <= kSharedPixels && imbalance(widths) <= kImbalance;
    if (apart_ || threads_ <= kScattering) return;
    for_tasks(threads_, count_, [&](int64_t k, int) {
      if (!kept[k] || !memory_.lattices[k].listed) list_splats(memory_.lattices[k]);
    });
    gathers_ = true;
  }

  // The messages of blocks of channels, in place: a block per thread where that shares the work out well, else all threads on
  // one block after another.
  void run(const std::vector<float*>& blocks, const std::vector<int>& widths) {
    const int at_once = apart_ ? std::min<int>(threads_, blocks.size()) : 1;
    const int widest = *std::max_element(widths.begin(), widths.end());
    for (int n = 0; n < at_once; ++n) {
      for (int k = 0; k < count_; ++k) vertices(n, k, widest);
    }
    const int inside = at_once > 1 ? 1 : threads_;
    for_tasks(at_once, blocks.size(), [&](int64_t b, int rank) {
      float* at[2];
      SlicePart parts[2];
      for (int k = 0; k < count_; ++k) {
        at[k] = vertices(rank, k, widest);
        parts[k] = slice_part(k, at[k], kernels_[k].weight);
      }
      filter(0, count_, blocks[b], at, widths[b], inside);
      slice_all(parts, count_, blocks[b], widths[b], inside);
    });
  }

 private:
  // The channels of the busiest thread over those of the average one.
  double imbalance(const std::vector<int>& widths) const {
    std::vector<int> load(threads_);
    int sum = 0;
    for (const int width : widths) {
      *std::min_element(load.begin(), load.end()) += width;
      sum += width;
    }
    return *std::max_element(load.begin(), load.end()) * static_cast<double>(threads_) / sum;
  }

  float* vertices(int rank, int k, int width) {
    while (static_cast<int>(memory_.vertices.size()) <= rank) {
      memory_.vertices.push_back(std::make_unique<CrfMemory::Parts::Vertices>());
    }
    return memory_.vertices[rank]->of[k].reserve(memory_.lattices[k].vertices * width);
  }

  SlicePart slice_part(int k, const float* vertices, float weight) const {
    const Lattice& l = memory_.lattices[k];
    return {l.vertex.data(), l.share.data(), vertices, l.corners, weight};
  }

  void slice_all(const SlicePart* parts, int count, float* pixels, int width, int threads) const {
    const int64_t total = memory_.lattices[count_ - 1].pixels;
    for_tasks(threads, tasks_of(total, kPixelsPerTask), [&](int64_t task, int) {
      slice()(parts, count, width, pixels, task * kPixelsPerTask, std::min((task + 1) * kPixelsPerTask, total));
    });
  }

  // Splats and blurs kernels first .. end - 1; their tasks are shared out together.
  void filter(int first, int end, const float* pixels, float* const* vertices, int width, int threads) const {
    int64_t tasks[3] = {};  // where those of a kernel end
    for (int k = first; k < end; ++k) {
      tasks[k + 1] = tasks[k] + (gathers_ ? tasks_of(memory_.lattices[k].vertices, kCut) : 1);
    }
    for_tasks(threads, tasks[end], [&](int64_t task, int) {
      const int k = task >= tasks[first + 1] ? end - 1 : first;
      const Lattice& l = memory_.lattices[k];
      if (!gathers_) {
        memset(vertices[k], 0, l.vertices * width * sizeof(float));
        scatter()(slice_part(k, vertices[k], 1), width, pixels, l.pixels, vertices[k]);
        return;
      }
      const int64_t begin = (task - tasks[k]) * kCut;
      const SplatPart part{l.start.data(), l.splats.data(), pixels, vertices[k]};
      splat()(part, width, begin, std::min(begin + kCut, l.vertices));
    });
    for (int j = 0; j < 6; ++j) {
      for (int k = first; k < end; ++k) {
        const int64_t runs = j < memory_.lattices[k].corners ? memory_.lattices[k].directions[j].cut.size() - 1 : 0;
        tasks[k + 1] = tasks[k] + runs;
      }
      for_tasks(threads, tasks[end], [&](int64_t task, int) {
        const int k = task >= tasks[first + 1] ? end - 1 : first;
        const Lattice::Direction& along = memory_.lattices[k].directions[j];
        const int64_t begin = along.cut[task - tasks[k]], stop = along.cut[task - tasks[k] + 1];
        blur()(along.chain.data() + begin, stop - begin, width, vertices[k]);
      });
    }
  }

  void normalise(int k, int64_t pixels) {
    Lattice& l = memory_.lattices[k];
    float* const norm = memory_.scratch.reserve(pixels);
    float* at[2] = {};
    at[k] = vertices(0, k, 8);  // of which one is used: most calls filter as many afterwards
    for (int64_t n = 0; n < pixels; ++n) norm[n] = 1;
    filter(k, k + 1, norm, at, 1, threads_);
    const SlicePart part = slice_part(k, at[k], 1);
    slice_all(&part, 1, norm, 1, threads_);
    for (int64_t n = 0; n < pixels; ++n) norm[n] = 1 / sqrtf(norm[n] + 1e-20f);
    for_tasks(threads_, tasks_of(pixels, kPixelsPerTask), [&](int64_t task, int) {
      const int64_t begin = task * kPixelsPerTask, end = std::min(begin + kPixelsPerTask, pixels);
      for (int64_t n = begin; n < end; ++n) {
        for (int c = 0; c < l.corners; ++c) l.share.data()[n * l.corners + c] *= norm[n];
      }
    });
  }

  CrfMemory::Parts& memory_;
  const std::vector<CrfKernel>& kernels_;
  int count_, threads_;
  bool apart_ = false, gathers_ = false;  // a block per thread; vertices gather from their pixels
};

// Pointers into one image of a call, and the layout of its channels.
struct Image {
  std::vector<int> widths, ends;
  std::vector<float*> blocks, marginals;
  std::vector<const float*> unary;
  std::vector<int16_t*> ids;
  int channels = 0, padded = 0;

  Image(const CrfImages& s, int64_t image, const CrfTerm* begin, const CrfTerm* end, int threads) {
    const int64_t pixels = s.height * s.width;
    for (const CrfTerm* term = begin; term < end; ++term) {
      for (int64_t c = 0; c < term->classes; ++c) unary.push_back(term->unary + (image * term->classes + c) * pixels);
      marginals.push_back(term->marginals ? term->marginals + image * term->classes * pixels : nullptr);
      ids.push_back(term->ids ? term->ids + image * pixels : nullptr);
      channels += static_cast<int>(term->classes);
      ends.push_back(channels);
    }
    // Blocks of 16 channels cost less per channel, unless threads would have none.
    const int width = pixels <= kSharedPixels && tasks_of(channels, kCrfWidth) < threads ? 8 : kCrfWidth;
    for (; padded < channels; padded += widths.back()) widths.push_back(channels - padded > 8 ? width : 8);
  }
};

// Some terms of an image, on lattices that are there or made now.
void run_terms(const CrfImages& s, int64_t number, const CrfTerm* begin, const CrfTerm* end, Filters& filters,
               CrfMemory::Parts& memory, int threads) {
  const int64_t pixels = s.height * s.width;
  Image image(s, number, begin, end, threads);
  const bool filtered = s.iterations > 0 && !s.kernels.empty();
  if (filtered) {
    if (begin == s.terms.data()) filters.prepare(s.rgb + number * pixels * 3, s.height, s.width, image.widths);
    float* at = memory.blocks.reserve(pixels * image.padded);
    for (const int width : image.widths) {
      image.blocks.push_back(at);
      at += pixels * width;
    }
  }
  CrfChannels channels{pixels, static_cast<int>(image.blocks.size()), image.widths.data(), image.blocks.data(), image.channels,
                       static_cast<int>(image.ends.size()), image.ends.data(), image.unary.data(), image.marginals.data(),
                       image.ids.data(), false, !filtered};
  const int64_t floats = image.padded * kCrfTile;
  float* const scratch = memory.scratch.reserve(floats * threads);
  const auto update_all = [&] {
    for_tasks(threads, tasks_of(pixels, kPixelsPerTask), [&](int64_t task, int rank) {
      const int64_t first = task * kPixelsPerTask;
      update()(channels, first, std::min(first + kPixelsPerTask, pixels), scratch + rank * floats);
    });
  };
  update_all();
  channels.messages = true;
  for (int t = 0; filtered && t < s.iterations; ++t) {
    filters.run(image.blocks, image.widths);
    channels.last = t + 1 == s.iterations;
    update_all();
  }
}

// Large images take their terms one after another, to hold the channels of one.
void run_image(const CrfImages& s, int64_t number, CrfMemory::Parts& memory, int threads) {
  Filters filters(memory, s.kernels, threads);
  const CrfTerm *const first = s.terms.data(), *const last = first + s.terms.size();
  if (s.height * s.width <= kSharedPixels) return run_terms(s, number, first, last, filters, memory, threads);
  for (const CrfTerm* term = first; term < last; ++term) run_terms(s, number, term, term + 1, filters, memory, threads);
}

}  // namespace

void dense_crf(const CrfImages& given, CrfMemory& memory, int threads) {
  CrfImages s = given;
  s.kernels.clear();
  for (const CrfKernel& kernel : given.kernels) {
    if (kernel.weight > 0) s.kernels.push_back(kernel);
  }
  for (const CrfKernel& kernel : s.kernels) {
    if (!lattice_fits(s.height, s.width, kernel)) throw std::invalid_argument("a kernel is too narrow for the lattice");
  }
  if (!s.images) return;
  threads = std::max(threads, 1);
  const bool side_by_side = s.images > 1 && s.height * s.width <= kSharedPixels;
  const int at_once = side_by_side ? static_cast<int>(std::min<int64_t>(threads, s.images)) : 1;
  while (static_cast<int>(memory.parts.size()) < at_once) memory.parts.push_back(std::make_unique<CrfMemory::Parts>());
  const int64_t together = s.images / at_once * at_once;  // the rest is shared by all threads
  for_tasks(at_once, at_once > 1 ? together : 0, [&](int64_t n, int rank) { run_image(s, n, *memory.parts[rank], 1); });
  for (int64_t n = at_once > 1 ? together : 0; n < s.images; ++n) run_image(s, n, *memory.parts[0], threads);
}

}  // namespace depthg
