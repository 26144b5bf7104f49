// Threads that wait for work, so that a call of a millisecond does not pay for starting them.
#pragma once

#include <functional>

namespace depthg {

enum class Join {
  kAll,      // every rank runs, all at the same time, so they may wait for each other
  kIfAwake,  // a thread that is not running yet when rank 0 returns is not waited for: a busy machine costs nothing
};

// Runs work(rank) for rank = 0 .. size-1, rank 0 on the calling thread, and returns when all that began are done. When
// another call occupies the threads, or a thread cannot be started, nothing is run and the answer is false. The threads
// work in the floating-point environment of the caller. After a fork, the child starts its own.
bool run_together(int size, const std::function<void(int)>& work, Join join = Join::kAll);

}  // namespace depthg
