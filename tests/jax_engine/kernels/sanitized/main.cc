// Runs every check of this folder, one after the other and then all at once; exit status 0 if nothing was wrong.

#include <thread>

#include "checks.h"
#include "threads.h"

int main() {
  gnomon::Team::own().resize(3);
  for (const auto& [name, check] : checks()) check(), std::printf("%s\n", name);
  std::vector<std::thread> callers;
  for (const auto& [name, check] : checks())
    for (int i = 0; i < 2; i++) callers.emplace_back(check);
  for (auto& caller : callers) caller.join();
  gnomon::Team::own().resize(1);  // the helpers end, or a sanitizer calls them leaked
  std::printf("all at once\n");
}
