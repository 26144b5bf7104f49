#include "thread_pool.h"

#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace depthg {
namespace {

// How long a thread stays awake for the next call, or for the others to finish: about what waking it up would take.
constexpr std::chrono::microseconds kAwake{100};

template <class Condition>
void spin_until(Condition reached) {
  const auto end = std::chrono::steady_clock::now() + kAwake;
  while (!reached() && std::chrono::steady_clock::now() < end) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

class Pool {
 public:
  const pid_t owner = getpid();

  bool run(int size, const std::function<void(int)>& work, Join join) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock() || !grow(size - 1)) return false;
    {
      std::lock_guard<std::mutex> lock(state_);
      std::fegetenv(&environment_);
      work_ = &work;
      size_ = size;
      joined_ = 0;
      done_ = 0;
      ++job_;
    }
    wake_.notify_all();
    work(0);
    int expected = size - 1;
    if (join == Join::kIfAwake) {
      std::lock_guard<std::mutex> lock(state_);
      size_ = 0;  // no more threads join
      expected = joined_;
    }
    spin_until([&] { return done_.load() == expected; });
    std::unique_lock<std::mutex> lock(state_);
    finished_.wait(lock, [&] { return done_.load() == expected; });
    size_ = 0;
    return true;
  }

 private:
  bool grow(int threads) {
    try {
      for (; started_ < threads; ++started_) std::thread(&Pool::serve, this, started_ + 1, job_.load()).detach();
    } catch (const std::system_error&) {
      return false;
    }
    return true;
  }

  void serve(int rank, unsigned long seen) {
    for (;;) {
      spin_until([&] { return job_.load() != seen; });
      const std::function<void(int)>* work;
      {
        std::unique_lock<std::mutex> lock(state_);
        wake_.wait(lock, [&] { return job_.load() != seen; });
        seen = job_.load();
        if (rank >= size_) continue;
        ++joined_;
        work = work_;
        std::fesetenv(&environment_);
      }
      (*work)(rank);
      std::lock_guard<std::mutex> lock(state_);
      ++done_;
      finished_.notify_one();
    }
  }

  std::mutex turn_, state_;  // one call at a time; everything below
  std::condition_variable wake_, finished_;
  std::fenv_t environment_{};
  const std::function<void(int)>* work_ = nullptr;
  int size_ = 0, joined_ = 0, started_ = 0;
  std::atomic<int> done_{0};
  std::atomic<unsigned long> job_{0};
};

std::atomic<Pool*> pool{nullptr};  // never destroyed: its threads may wait in it until the process ends

}  // namespace

bool run_together(int size, const std::function<void(int)>& work, Join join) {
  if (size <= 1) {
    work(0);
    return true;
  }
  Pool* current = pool.load();
  while (!current || current->owner != getpid()) {
    Pool* fresh = new Pool;
    if (pool.compare_exchange_strong(current, fresh)) {
      current = fresh;
    } else {
      delete fresh;
    }
  }
  return current->run(size, work, join);
}

}  // namespace depthg
