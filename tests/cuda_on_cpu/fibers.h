// Runs blocks of threads on one core, for cuda_runtime.h: a fiber for every thread. Blocks of a gang (a cluster, or a grid that is
// launched cooperatively) run side by side, other blocks one after another.
//
// A warp that is drawn at random runs ahead of all others for a while, and blocks stand still at times, so that what only timing
// keeps right goes wrong: a missing barrier, a buffer that is used again too early. Words that a block posts to others arrive
// late and in any order. What never ends is told as an error.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace shim {

constexpr unsigned kLanes = 32;
constexpr std::size_t kStack = 64 * 1024;
constexpr long kPatience = 400;  // switches of every fiber without an event

// A place where threads meet: who comes waits until all that are present have come.
struct Meeting {
  unsigned present = 0, arrived = 0;
  uint64_t passed = 0;
};

struct Warp {
  Meeting meeting;
  uint64_t given[kLanes], taken[kLanes];
};

struct Block {
  unsigned index;               // in the grid
  long pause = 0;               // the step before which it stands still
  Meeting meeting;
  Meeting* cluster = nullptr;   // where it meets other blocks
  std::vector<char> shared;
  std::vector<Warp> warps;
  bool done() const { return meeting.present == 0; }
};

// Where a fiber, or the scheduler, goes on. Once begun it is left and entered by jumps, which need no system call.
struct Place {
  ucontext_t context;
  jmp_buf at;
  bool begun = false;
};

inline void go(Place& from, Place& to) {
  from.begun = true;
  if (_setjmp(from.at)) return;
  if (to.begun) _longjmp(to.at, 1);
  setcontext(&to.context);
}

struct Fiber {
  Place place;
  unsigned thread;
  Block* block;
  bool done;
  const uint64_t* counter;  // it waits until this is at least `turn`
  uint64_t turn;
  uint64_t cluster_turn;
};

struct Post {  // a word that is on its way
  uint64_t* to;
  uint64_t word;
  const Block* from;
  long due;    // the step before which it does not arrive
};

inline std::vector<Fiber> fibers;
inline char* stacks = nullptr;
inline std::size_t stacks_of = 0;
inline std::vector<Block> blocks;
inline std::vector<Post> posts;
inline Place scheduler;
inline Fiber* current = nullptr;
inline std::function<void()> body;
inline std::mt19937 draw{1};
inline std::string failure;
inline long events = 0, step = 0;
inline int skipped = -1;   // number of the barrier in the source that does nothing: a planted fault
inline int barriers = 0;   // barriers in the source, seen so far

inline void yield() { go(current->place, scheduler); }

[[noreturn]] inline void fail(const std::string& what) {
  if (failure.empty()) failure = what;
  for (;;) yield();
}

inline void wait_for(const uint64_t* counter, uint64_t turn) {
  current->counter = counter;
  current->turn = turn;
  while (*counter < turn) yield();
  current->counter = nullptr;
}

inline bool complete(Meeting& m) {
  if (m.present == 0 || m.arrived < m.present) return false;
  m.arrived = 0;
  ++m.passed;
  return true;
}

inline void check(Meeting& m) {
  if (complete(m)) ++events;
}

inline void check(Warp& w) {
  if (complete(w.meeting)) std::copy(w.given, w.given + kLanes, w.taken);
}

inline void barrier(int site) {
  if (site == skipped) return;
  Meeting& m = current->block->meeting;
  const uint64_t turn = m.passed + 1;
  ++m.arrived;
  check(m);
  wait_for(&m.passed, turn);
}

// All lanes of a warp give a value; each sees all. Masks are full.
inline const uint64_t* meet(unsigned mask, uint64_t value) {
  Warp& w = current->block->warps[current->thread / kLanes];
  if (mask != 0xffffffffu) fail("a mask that is not full");
  if (w.meeting.present != kLanes) fail("a lane of a full mask has returned");
  const uint64_t turn = w.meeting.passed + 1;
  w.given[current->thread % kLanes] = value;
  ++w.meeting.arrived;
  check(w);
  wait_for(&w.meeting.passed, turn);
  return w.taken;
}

// ---- posts --------------------------------------------------------------------------------------------------------------

inline void check_target(const uint64_t* to) {
  const char* p = reinterpret_cast<const char*>(to);
  for (const Block& b : blocks) {
    if (p >= b.shared.data() && p < b.shared.data() + b.shared.size() && b.done()) {
      if (failure.empty()) failure = "a post to the shared memory of a block that has returned";
    }
  }
}

// Delivers the oldest post to the same word as post `n`, if it is due.
inline void deliver(std::size_t n, bool now = false) {
  const uint64_t* to = posts[n].to;
  const auto oldest = std::find_if(posts.begin(), posts.end(), [&](const Post& p) { return p.to == to; });
  if (!now && oldest->due > step) return;
  check_target(to);
  if (failure.empty()) *oldest->to = oldest->word;
  posts.erase(oldest);
  ++events;
}

inline void deliver_all_of(const Block* from) {
  for (std::size_t n = 0; n < posts.size();) {
    if (!from || posts[n].from == from) {
      deliver(n, true);
    } else {
      ++n;
    }
  }
}

template <class T>
void post(T* to, const T& value) {
  uint64_t words[sizeof(T) / 8];
  std::memcpy(words, &value, sizeof value);
  for (std::size_t w = 0; w < sizeof(T) / 8; ++w) {
    const long late = draw() % 16 ? 0 : static_cast<long>(draw() % (2 * fibers.size()));
    posts.push_back({reinterpret_cast<uint64_t*>(to) + w, words[w], current->block, step + late});
  }
}

// ---- clusters -------------------------------------------------------------------------------------------------------------

inline void cluster_arrive() {
  deliver_all_of(current->block);
  Meeting& m = *current->block->cluster;
  current->cluster_turn = m.passed + 1;
  ++m.arrived;
  check(m);
}

inline void cluster_wait() { wait_for(&current->block->cluster->passed, current->cluster_turn); }

inline void* of_block(const void* here, unsigned rank) {
  Block* mine = current->block;
  const std::ptrdiff_t offset = static_cast<const char*>(here) - mine->shared.data();
  if (offset < 0 || offset >= static_cast<std::ptrdiff_t>(mine->shared.size())) fail("an address that is not shared memory");
  if (rank >= blocks.size()) fail("a rank outside the cluster");
  return blocks[rank].shared.data() + offset;
}

// ---- running --------------------------------------------------------------------------------------------------------------

inline void entry() {
  body();
  current->done = true;
  Block& b = *current->block;
  Warp& w = b.warps[current->thread / kLanes];
  --w.meeting.present;
  --b.meeting.present;
  --b.cluster->present;
  ++events;
  check(w);
  check(b.meeting);
  check(*b.cluster);
  for (;;) yield();
}

inline void make_fibers(unsigned threads) {
  const std::size_t count = blocks.size() * threads;
  if (stacks_of < count) {  // pages that no thread touches cost nothing
    if (stacks) munmap(stacks, stacks_of * kStack);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    stacks = static_cast<char*>(mmap(nullptr, count * kStack, PROT_READ | PROT_WRITE, flags, -1, 0));
    stacks_of = count;
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stacks, count * kStack);  // frames of earlier fibers never ended
#endif
  fibers.resize(count);
  for (std::size_t n = 0; n < count; ++n) {
    Fiber& f = fibers[n];
    f.thread = static_cast<unsigned>(n % threads);
    f.block = &blocks[n / threads];
    f.done = false;
    f.counter = nullptr;
    ucontext_t& context = f.place.context;
    f.place.begun = false;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks + n * kStack;
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
}

inline long run_warp(std::size_t first) {
  unsigned lanes[kLanes];
  for (unsigned l = 0; l < kLanes; ++l) lanes[l] = l;
  std::shuffle(lanes, lanes + kLanes, draw);
  long switches = 0;
  for (const unsigned l : lanes) {
    current = &fibers[first + l];
    if (current->done || (current->counter && *current->counter < current->turn)) continue;
    ++switches;
    go(scheduler, current->place);
  }
  return switches;
}

// Blocks [from, from + count) of the grid, side by side.
inline void run_gang(unsigned from, unsigned count, unsigned threads, std::size_t shared) {
  Meeting cluster;
  cluster.present = count * threads;
  blocks.assign(count, Block{});
  for (unsigned b = 0; b < count; ++b) {
    blocks[b].index = from + b;
    if (count > 1 && draw() % 4 == 0) blocks[b].pause = static_cast<long>(draw() % (4 * count * threads));
    blocks[b].meeting.present = threads;
    blocks[b].cluster = &cluster;
    blocks[b].shared.assign(shared + 16, static_cast<char>(0x7f));  // what is not written is rubbish
    blocks[b].warps.resize(threads / kLanes);
    for (Warp& w : blocks[b].warps) w.meeting.present = kLanes;
  }
  make_fibers(threads);
  const std::size_t warps = fibers.size() / kLanes;
  long idle = 0, seen = events;
  for (step = 0; cluster.present && failure.empty(); ++step) {
    const std::size_t first = draw() % warps * kLanes;
    if (count > 1 && draw() % 512 == 0) blocks[draw() % count].pause = step + static_cast<long>(draw() % (2 * fibers.size()));
    if (step < fibers[first].block->pause) continue;
    long ran = 1;
    for (unsigned ahead = 1 + draw() % 12; ahead && ran; --ahead) ran = run_warp(first);
    if (!posts.empty() && draw() % 4) deliver(draw() % posts.size());
    idle = seen == events ? idle + ran + 1 : 0;
    seen = events;
    if (idle > kPatience * static_cast<long>(fibers.size())) failure = "no thread gets on: a meeting or a post is missing";
  }
  deliver_all_of(nullptr);
}

inline void run(unsigned grid, unsigned gang, unsigned threads, std::size_t shared) {
  std::vector<unsigned> order(grid / gang);
  for (unsigned g = 0; g < order.size(); ++g) order[g] = g * gang;
  std::shuffle(order.begin(), order.end(), draw);
  for (const unsigned from : order) {
    if (failure.empty()) run_gang(from, gang, threads, shared);
  }
}

}  // namespace shim
