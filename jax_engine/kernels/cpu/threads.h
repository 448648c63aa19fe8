// Who computes what: the pieces of a call's work are shared by the calling thread and helpers that this process has once.
//
//   1 tickets  a piece belongs to whoever takes its ticket; a helper that comes late, or never, takes none, and the
//              caller computes them all. Nothing is waited for but pieces that somebody has begun.
//   2 sleep    a helper looks for the next call for SPIN before it sleeps, for the calls of a step follow one another
//              within microseconds and to wake a thread costs more than most of them. The caller waits in that way for
//              the last pieces. No more than that is spent on a core that somebody else may need.
//   3 alone    one call at a time has the helpers; others that run beside it, calls within a call, calls too small to
//              be worth it, and a forked child, in which there are no helpers, do their work themselves.
//
// Pieces are independent, so who computes them, and when, is in no result's bits.

#pragma once

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace gnomon {

constexpr size_t WORTH_A_THREAD = 128 << 10;  // bytes read, or four times as many multiply-adds
constexpr std::chrono::microseconds SPIN{100};

struct FloatingPoint {  // IEEE's while it lives: XLA's threads flush subnormals, the calling one may not
  fenv_t before;
  FloatingPoint() { fegetenv(&before), fesetenv(FE_DFL_ENV); }
  ~FloatingPoint() { fesetenv(&before); }
};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

// Whether `done` comes true within SPIN.
template <class Done>
bool spin(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + SPIN;
  do
    for (int i = 0; i < 32; i++, pause())
      if (done()) return true;
  while (std::chrono::steady_clock::now() < end);
  return false;
}

class Team {
 public:
  using Work = void (*)(const void* of, size_t i);

  // The one of this process. It is never destroyed, for helpers may still look at it when the process ends.
  __attribute__((visibility("hidden"))) static Team& own() {
    static Team& team = *new Team;
    return team;
  }

  // Calls work(of, i) for 0 ≤ i < count, here and on the helpers; false, and nothing is done, if somebody else has them.
  bool share(Work work, const void* of, uint32_t count) {
    if (helpers_ == 0 || taken_.exchange(true, std::memory_order_acquire)) return false;
    work_ = work, of_ = of, count_ = count;
    left_.store(count, std::memory_order_relaxed);
    tickets_.store(count, std::memory_order_release);
    wake();
    take();
    const auto left = [&] { return left_.load(std::memory_order_acquire); };
    while (!spin([&] { return left() == 0; }))
      if (const uint32_t some = left()) left_.wait(some);
    taken_.store(false, std::memory_order_release);
    return true;
  }

  // From now on `threads` compute, the calling one included; returns when helpers that are too many have ended. As many
  // fewer as the system does not give.
  void resize(size_t threads) {
    if (is_forked_) return;
    while (taken_.exchange(true, std::memory_order_acquire)) std::this_thread::yield();
    helpers_ = threads < 1 ? 0 : uint32_t(threads - 1);
    wake();
    for (; threads_.size() > helpers_; threads_.pop_back()) threads_.back().join();
    sigset_t all, before;  // signals are for threads that expect them: helpers are born with all of them blocked
    sigfillset(&all), pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      while (threads_.size() < helpers_) threads_.emplace_back(&Team::help, this, threads_.size());
    } catch (const std::system_error&) {
      helpers_ = uint32_t(threads_.size());
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    taken_.store(false, std::memory_order_release);
  }

 private:
  Team() { pthread_atfork(nullptr, nullptr, [] { own().is_forked_ = true, own().helpers_ = 0; }); }

  void wake() {
    calls_.fetch_add(1, std::memory_order_release);
    calls_.notify_all();
  }

  // Takes tickets as long as there are any. What a call has set is read once a ticket of it is held: until its piece is
  // done the call cannot end.
  void take() {
    for (uint32_t n = tickets_.load(std::memory_order_acquire); n > 0;)
      if (tickets_.compare_exchange_weak(n, n - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        work_(of_, count_ - n);
        if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
        n = tickets_.load(std::memory_order_acquire);
      }
  }

  void help(size_t number) {
    const FloatingPoint ieee;
    for (;;) {
      const uint32_t seen = calls_.load(std::memory_order_acquire);
      if (number >= helpers_) return;
      take();
      const auto called = [&] { return calls_.load(std::memory_order_relaxed) != seen; };
      if (!spin(called)) calls_.wait(seen);
    }
  }

  std::atomic<bool> taken_{false}, is_forked_{false};
  std::atomic<uint32_t> helpers_{0};
  std::vector<std::thread> threads_;
  Work work_;  // of the call that has the helpers
  const void* of_;
  uint32_t count_;
  alignas(64) std::atomic<uint32_t> calls_{0};    // that there were; what helpers sleep on
  alignas(64) std::atomic<uint32_t> tickets_{0};  // of pieces that nobody has begun
  alignas(64) std::atomic<uint32_t> left_{0};     // pieces that are not done
};

// Calls work(i) for 0 ≤ i < count; returns when all is done. cost: of the whole, in bytes read or four times as many
// multiply-adds. work runs under IEEE's rounding and subnormals, and throws nothing.
template <class Work>
void share(size_t count, size_t cost, const Work& work) {
  const FloatingPoint ieee;
  const Team::Work call = [](const void* of, size_t i) { (*static_cast<const Work*>(of))(i); };
  if (count > 1 && cost >= WORTH_A_THREAD && Team::own().share(call, &work, uint32_t(count))) return;
  for (size_t i = 0; i < count; i++) work(i);
}

}  // namespace gnomon
