// Norms, turns and activations of many widths: near to double's, and with the bits that every row has alone.

#include "rows.h"

#include <cmath>

#include "checks.h"

namespace {

using namespace gnomon;

constexpr size_t ROWS = 9;

// y [ROWS, width] of `work(r)` for every other row; `alone(r, y)` is one of them.
template <class Work, class Alone>
void rows_are_alone(size_t width, Array<float>& y, const Work& work, const Alone& alone) {
  bool live[ROWS];
  for (size_t r = 0; r < ROWS; r++) live[r] = r % 2 == 0;
  clear(y);
  each_live_row(live, ROWS, size_t(1) << 20, work);
  Array<float> one(width);
  for (size_t r = 0; r < ROWS; r++) {
    if (live[r]) alone(r, one.data());
    for (size_t k = 0; k < width; k++)
      require(y[r * width + k] == (live[r] ? one[k] : UNWRITTEN), "a row has the bits it has alone, a dead one none");
  }
}

void widths(size_t D) {
  Array<float> x(ROWS * D), weight(D), y(ROWS * D);
  fill(x, 1), fill(weight, 2);
  for (bool is_centred : {false, true}) {
    const Norm n{D, weight.data(), is_centred ? weight.data() : nullptr, 1, is_centred, 1e-5f};
    const auto alone = [&](size_t r, float* to) { norm(n, x.data() + r * D, to); };
    rows_are_alone(D, y, [&](size_t r) { alone(r, y.data() + r * D); }, alone);
    double mean = 0, squares = 0;
    for (size_t k = 0; k < D; k++) mean += is_centred ? x[k] / double(D) : 0;
    for (size_t k = 0; k < D; k++) squares += (x[k] - mean) * (x[k] - mean) / double(D);
    for (size_t k = 0; k < D; k++) {
      const double exact = (x[k] - mean) / std::sqrt(squares + 1e-5) * (1 + weight[k]) + (is_centred ? weight[k] : 0);
      require(D == 1 || std::abs(y[k] - exact) < 1e-5 * (1 + std::abs(exact)), "a norm is near");
    }
  }
  for (const auto kind : {Activation::SILU, Activation::GELU, Activation::GELU_TANH})
    for (const float* times : {static_cast<const float*>(nullptr), static_cast<const float*>(weight.data())}) {
      const auto alone = [&](size_t r, float* to) { activate(x.data() + r * D, times, D, kind, to); };
      rows_are_alone(D, y, [&](size_t r) { alone(r, y.data() + r * D); }, alone);
    }
  for (size_t half : {D / 2, D / 3}) {
    Array<float> cos(half), sin(half);
    for (size_t i = 0; i < half; i++) cos[i] = float(std::cos(i + 1.0)), sin[i] = float(std::sin(i + 1.0));
    const auto alone = [&](size_t r, float* to) { rotate(x.data() + r * D, cos.data(), sin.data(), half, D, to); };
    rows_are_alone(D, y, [&](size_t r) { alone(r, y.data() + r * D); }, alone);
    for (size_t i = 0; i < half; i++)
      require(std::abs(y[i] - (x[i] * std::cos(i + 1.0) - x[i + half] * std::sin(i + 1.0))) < 1e-5, "a turn is near");
  }
}

const bool added = add("rows", [] {
  for (size_t D : {1, 2, 3, 15, 16, 17, 48, 577}) widths(D);
});

}  // namespace
