// Every piece is computed once, whoever calls, however many threads there are, within a call and in a forked child.

#include "threads.h"

#include <sys/wait.h>
#include <unistd.h>

#include "checks.h"

namespace {

void once_each(size_t calls) {
  for (size_t c = 0; c < calls; c++) {
    std::vector<std::atomic<int>> done(1 + c * 7 % 37);
    gnomon::share(done.size(), gnomon::WORTH_A_THREAD, [&](size_t i) {
      done[i]++;
      if (c % 10 == 0) gnomon::share(3, gnomon::WORTH_A_THREAD, [&](size_t) { done[i]++; });
    });
    for (const auto& times : done) require(times == (c % 10 == 0 ? 4 : 1), "a piece is computed once");
    if (c % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the helpers sleep
  }
}

const bool added = add("threads", [] {
  once_each(1000);
  for (size_t threads : {1, 4, 2, 5, 3}) gnomon::Team::own().resize(threads), once_each(50);
#if !defined(__SANITIZE_THREAD__)  // which cannot follow a fork of a process that has threads
  const pid_t child = fork();
  if (child == 0) once_each(100), gnomon::Team::own().resize(4), once_each(100), _exit(7);
  int status = 0;
  require(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7, "a child ends");
#endif
});

}  // namespace
