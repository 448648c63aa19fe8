// What is done to every live row by itself: norms, rotary positions, activations. As in the reference:
//
//     norm      x / √(mean(x²) + ε) · (offset + weight), where that is asked for of x − mean(x), and with a bias
//     rotate    (first, second) → (first · cos − second · sin, second · cos + first · sin)
//     activate  silu, gelu or gelu_tanh of x, times a second factor where there is one
//
// Why the bits of a row depend on that row alone: a function computes one row, from its first lanes to its last, and
// knows of no other. A sum adds up coordinate k in lane k mod W, in the order of k, and then the lanes in one order; what
// fills up the last lanes is zero. Which thread computes a row, and how many there are, is in no result. Dead rows are
// neither read nor written.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "functions.h"
#include "lanes.h"
#include "threads.h"

namespace gnomon {

// ---- norms

struct Norm {
  size_t D;
  const float *weight, *bias;  // [D]; no bias: null
  float offset;                // of the weight
  bool is_centred;
  float eps;
};

// x [D] → y [D]
inline void norm(const Norm& n, const float* x, float* y) {
  const auto each = [&](const auto& of) {
    for (size_t k = 0; k < n.D; k += W) of(k);
  };
  if (n.is_centred) {
    Lanes sum = {};
    each([&](size_t k) { sum += load_some(x, k, n.D); });
    const float mean = total(sum) / float(n.D);
    each([&](size_t k) { store_some(y, k, n.D, load_some(x, k, n.D) - mean); });
    x = y;
  }
  Lanes squares = {};
  each([&](size_t k) {
    const Lanes some = load_some(x, k, n.D);
    squares = fused(squares, some, some);
  });
  const float scale = 1 / std::sqrt(total(squares) / float(n.D) + n.eps);
  each([&](size_t k) {
    Lanes some = load_some(x, k, n.D) * scale * (n.offset + load_some(n.weight, k, n.D));
    if (n.bias) some += load_some(n.bias, k, n.D);
    store_some(y, k, n.D, some);
  });
}

// ---- rotary positions

// A head, x [H] → y [H]: its first 2 · half coordinates are turned, i paired with i + half; cos, sin [half].
inline void rotate(const float* x, const float* cos, const float* sin, size_t half, size_t H, float* y) {
  for (size_t i = 0; i < half; i += W) {
    const Lanes first = load_some(x, i, half), second = load_some(x + half, i, half);
    const Lanes c = load_some(cos, i, half), s = load_some(sin, i, half);
    store_some(y, i, half, fused(first * c, -second, s));
    store_some(y + half, i, half, fused(second * c, first, s));
  }
  std::copy(x + 2 * half, x + H, y + 2 * half);
}

// ---- activations

enum class Activation { SILU, GELU, GELU_TANH };

inline Lanes activation(Lanes x, Activation kind) {
  constexpr float ROOT = 0x1.988454p-1f, HALF_ROOT = 0x1.6a09e6p-1f;  // √(2/π), √½
  switch (kind) {
    case Activation::SILU: return x / (1.0f + exp(-x));
    case Activation::GELU: return 0.5f * x * (1.0f + erf(x * HALF_ROOT));
    default: return 0.5f * x * (1.0f + tanh(ROOT * (x + 0.044715f * (x * x * x))));
  }
}

// x, times [F] → y [F]; times: null where there is none.
inline void activate(const float* x, const float* times, size_t F, Activation kind, float* y) {
  for (size_t k = 0; k < F; k += W) {
    const Lanes some = activation(load_some(x, k, F), kind);
    store_some(y, k, F, times ? some * load_some(times, k, F) : some);
  }
}

// ---- rows

// Calls work(r) for every live row r of `count`. cost: of a row; see share.
template <class Work>
void each_live_row(const bool* live, size_t count, size_t cost, const Work& work) {
  std::vector<size_t> which;
  for (size_t r = 0; r < count; r++)
    if (live[r]) which.push_back(r);
  share(which.size(), which.size() * cost, [&](size_t i) { work(which[i]); });
}

}  // namespace gnomon
