// Who computes what: pieces of a call's work, shared by the threads that come along.

#pragma once

#include <atomic>
#include <cfenv>
#include <cstddef>
#include <memory>

#include "xla/ffi/api/ffi.h"

namespace gnomon {

namespace ffi = xla::ffi;

struct FloatingPoint {  // IEEE's while it lives: XLA's threads flush subnormals, the calling one may not
  fenv_t before;
  FloatingPoint() { fegetenv(&before), fesetenv(FE_DFL_ENV); }
  ~FloatingPoint() { fesetenv(&before); }
};

// Calls work(i) for 0 ≤ i < count, on this thread and on those of the pool that come along while something is left. It
// waits for what others have begun, never for a thread to become free, so it ends even if none ever does.
template <class Work>
void share(ffi::ThreadPool& pool, size_t helpers, size_t count, const Work& work) {
  struct Shared {  // outlives the call: a helper that comes too late finds it, with nothing left, and no more
    std::atomic<size_t> taken{0};
    std::atomic<int> left;
  };
  const auto shared = std::make_shared<Shared>();
  shared->left = int(count);
  auto help = [shared, count, &work] {
    const FloatingPoint ieee;
    for (size_t i; (i = shared->taken.fetch_add(1)) < count;) {
      work(i);
      if (shared->left.fetch_sub(1) == 1) shared->left.notify_one();
    }
  };
  for (size_t i = 0; i < helpers; i++) pool.Schedule(decltype(help)(help));
  help();
  for (int left; (left = shared->left.load()) > 0;) shared->left.wait(left);
}

}  // namespace gnomon
