// Products of many shapes: near to float64's, and with the bits that every row has alone.

#include "linear.h"

#include <cmath>

#include "checks.h"

namespace {

using namespace gnomon;

float widened(float weight) { return weight; }
float widened(uint16_t weight) {
  const uint32_t word = uint32_t(weight) << 16;
  float wide;
  return std::memcpy(&wide, &word, sizeof wide), wide;
}

void narrow(float weight, float& to) { to = weight; }
void narrow(float weight, uint16_t& to) {
  uint32_t word;
  std::memcpy(&word, &weight, sizeof word), to = uint16_t(word >> 16);
}

template <class T, class A>
void product(size_t in, size_t out, size_t rows, double relative) {
  Array<float> x(rows * in), random(out * in), y(rows * out), second(rows * 5), alone(out);
  fill(x, 1), fill(random, 2), clear(y), clear(second);
  Array<T> weight(out * in);
  for (size_t i = 0; i < out * in; i++) narrow(random[i], weight[i]);
  const size_t of_word = 4 / sizeof(T), words = (in + of_word - 1) / of_word;
  Array<uint32_t> panels((out + LANES - 1) / LANES * words * LANES);
  pack(weight.data(), out, in, reinterpret_cast<T*>(panels.data()));
  Array<bool> live(rows), own(1);
  for (size_t r = 0; r < rows; r++) live[r] = r % 5 != 3;
  own[0] = true;
  const Output whole{out, panels.data(), y.data()}, part{std::min<size_t>(out, 5), panels.data(), second.data()};
  products<A>(x.data(), in, live.data(), rows, {whole, part});
  for (size_t r = 0; r < rows; r++) {
    products<A>(x.data() + r * in, in, own.data(), 1, {{out, panels.data(), alone.data()}});
    for (size_t o = 0; o < out; o++) {
      double sum = 0, size = 0;
      for (size_t k = 0; k < in; k++) {
        const double term = double(x[r * in + k]) * widened(weight[o * in + k]);
        sum += term, size += std::abs(term);
      }
      const float expected = live[r] ? alone[o] : UNWRITTEN;
      require(y[r * out + o] == expected, "a row has the bits that it has alone, a dead one none");
      require(o >= part.out || second[r * part.out + o] == expected, "a weight beside another has its own results");
      require(std::abs(alone[o] - sum) <= (relative + double(in) * 0x1p-22) * size, "a sum is near");
    }
  }
}

struct Shape {
  size_t in, out, rows;
};

const bool added = add("linear", [] {
  for (const auto& [in, out, rows] :
       {Shape{1, 1, 1}, {5, 3, 2}, {33, 100, 9}, {577, 49, 8}, {1031, 75, 21}, {200, 700, 5}}) {
    product<float, Float32>(in, out, rows, 0);
    product<uint16_t, BFloat16>(in, out, rows, 0);
    product<uint16_t, BFloat16Rounded>(in, out, rows, 0x1p-8);
  }
});

}  // namespace
