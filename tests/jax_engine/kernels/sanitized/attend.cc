// Attention of many shapes: near to float64's, and with the bits that every query has alone.

#include "attend.h"

#include <cmath>

#include "checks.h"

namespace {

using namespace gnomon;

struct Shape {
  size_t K, G, H, page_size, T, window;
  float score_cap;
};

const std::vector<int32_t> STARTS{0, 31, 64, 3, 255, 256, 520}, LIVE{1, 5, 2, 0, 1, 7, 40};  // of each sequence

void set(float& to, float x) { to = x; }
void set(uint16_t& to, float x) { to = uint16_t(__builtin_bit_cast(uint32_t, x) >> 16); }
double widened(float x) { return x; }
double widened(uint16_t x) { return __builtin_bit_cast(float, uint32_t(x) << 16); }

template <class Stored>
void attention(Shape s) {
  const size_t B = STARTS.size(), P = (STARTS[B - 1] + s.T) / s.page_size + 1, width = s.K * s.G * s.H;
  Array<int32_t> tables(B * P), positions(B * s.T), lengths(B);
  size_t pages = 1;
  for (size_t b = 0; b < B; b++) {
    lengths[b] = LIVE[b] ? STARTS[b] + std::min(LIVE[b], int32_t(s.T)) : 0;
    for (size_t t = 0; t < s.T; t++) positions[b * s.T + t] = STARTS[b] + int32_t(t);
    for (size_t i = 0; i < P; i++) tables[b * P + i] = i * s.page_size < size_t(lengths[b]) ? int32_t(pages++) : -1;
  }
  Array<float> q(B * s.T * width), y(q.size()), alone(width), random(2 * pages * s.page_size * s.K * s.H);
  Array<Stored> keys(random.size() / 2), values(keys.size());
  fill(q, 1), fill(random, 2), clear(y);
  for (size_t i = 0; i < keys.size(); i++) set(keys[i], random[2 * i]), set(values[i], random[2 * i + 1]);
  Attention<Stored> a{B, s.T, s.K, s.G, s.H, P, s.page_size, q.data(), keys.data(), values.data(), tables.data(),
                      positions.data(), lengths.data(), s.window, s.score_cap, y.data()};
  attend(a);
  for (size_t i = 0; i < B * s.T; i++) {
    const size_t b = i / s.T, end = size_t(positions[i]) + 1, begin = end - std::min(end, s.window);
    const Attention<Stored> one{1, 1, s.K, s.G, s.H, P, s.page_size, q.data() + i * width, keys.data(), values.data(),
                                tables.data() + b * P, positions.data() + i, lengths.data() + b, s.window,
                                s.score_cap, alone.data()};
    clear(alone);
    attend(one);
    for (size_t j = 0; j < width; j++) require(alone[j] == y[i * width + j], "a query has the bits that it has alone");
    if (positions[i] >= lengths[b]) {
      for (size_t j = 0; j < width; j++) require(alone[j] == UNWRITTEN, "of who is dead nothing is written");
      continue;
    }
    for (size_t n = 0; n < s.K * s.G; n++) {
      const auto place = [&](size_t at) {
        const size_t page = size_t(tables[b * P + at / s.page_size]);
        return ((page * s.page_size + at % s.page_size) * s.K + n / s.G) * s.H;
      };
      std::vector<double> scores, mix(s.H);
      for (size_t at = begin; at < end; at++) {
        double score = 0;
        for (size_t h = 0; h < s.H; h++) score += q[i * width + n * s.H + h] * widened(keys[place(at) + h]);
        scores.push_back(s.score_cap < INFINITY ? s.score_cap * std::tanh(score / s.score_cap) : score);
      }
      const double top = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (size_t at = begin; at < end; at++) {
        const double weight = std::exp(scores[at - begin] - top);
        sum += weight;
        for (size_t h = 0; h < s.H; h++) mix[h] += weight * widened(values[place(at) + h]);
      }
      for (size_t h = 0; h < s.H; h++)
        require(std::abs(alone[n * s.H + h] - mix[h] / sum) < 1e-4, "a mix is near");
    }
  }
}

const bool added = add("attend", [] {
  const size_t all = size_t(1) << 31;
  for (const Shape& s : {Shape{3, 3, 64, 32, 1, all, INFINITY}, {2, 1, 16, 8, 1, 40, 3}, {1, 17, 17, 100, 1, 1, 3},
                         {3, 2, 5, 3, 40, 300, INFINITY}, {1, 7, 33, 16, 40, all, 3}}) {
    attention<float>(s);
    attention<uint16_t>(s);
  }
});

}  // namespace
