// What a file of this folder needs: it adds its check, which `main` runs beside all others.
//
//     static const bool added = add("linear", [] { ... require(y == expected, "the sum"); });

#pragma once

#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>
#include <utility>
#include <vector>

inline std::vector<std::pair<const char*, void (*)()>>& checks() {
  static std::vector<std::pair<const char*, void (*)()>> all;
  return all;
}

inline bool add(const char* name, void (*check)()) {
  checks().emplace_back(name, check);
  return true;
}

inline void require(bool is_true, const char* what) {
  if (!is_true) std::fprintf(stderr, "not true: %s\n", what), std::exit(1);
}

// An array of just so many, at a multiple of 64 bytes as XLA's are: what is read or written beside it is noticed.
template <class T>
class Array {
 public:
  explicit Array(size_t count) : count_(count), first_(static_cast<T*>(operator new[](count * sizeof(T), AT))) {
    for (size_t i = 0; i < count; i++) first_[i] = T(0);
  }
  Array(const Array&) = delete;
  ~Array() { operator delete[](first_, AT); }
  T* data() { return first_; }
  T& operator[](size_t i) { return first_[i]; }
  size_t size() const { return count_; }

 private:
  static constexpr std::align_val_t AT{64};
  size_t count_;
  T* first_;
};

constexpr float UNWRITTEN = -7;  // what stands where a result is to be, and still stands in dead rows

inline void clear(Array<float>& results) {
  for (size_t i = 0; i < results.size(); i++) results[i] = UNWRITTEN;
}

inline void fill(Array<float>& with_normal, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < with_normal.size(); i++) with_normal[i] = normal(random);
}
