// A few threads that wait for work, so that a call of a millisecond does not pay for starting them.
#pragma once

#include <functional>

namespace depthg {

// Runs work(rank) for rank = 0 .. size-1, rank 0 on the calling thread, and returns when all are done. All ranks run at the
// same time, so they may wait for each other. When another call occupies the threads, or a thread cannot be started, nothing
// is run and the answer is false.
// The threads take over the floating-point environment of the caller. After a fork, the child starts its own.
bool run_together(int size, const std::function<void(int)>& work);

}  // namespace depthg
