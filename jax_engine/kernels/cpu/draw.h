// One row's report and its token, from raw logits [V]: reference/sampler.py in float32, stage by stage.
//
//   1 report    the first TOP ids in the order (−logit, id), of which the first has the maximum; the logarithm of the
//               sum of exponentials; whether all logits are finite
//   2 adjust    z = l + bias − frequency·c − presence·[c > 0]; a row that asks for neither reads neither
//   3 greedy    the first id in the order (−z, id)
//   4 temper    s = (z − max z) / temperature, wherever it is needed
//   5 nucleus   the smallest z that is kept, sought by halving the range of those that it can be; nothing is sorted
//   6 draw      the largest s + g; g is computed where it can matter
//
// Why a row's bits are its own: a row is read by one thread, no other row is, and its sums run in one order, lanes
// within parts of the row and then the parts.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "functions.h"
#include "lanes.h"

namespace gnomon {

constexpr size_t TOP = 20;    // entries of a ranking, where there are so many ids
constexpr size_t PART = 512;  // ids whose sum is taken in float32; parts are added in float64
constexpr float INFINITE = __builtin_inff();

struct Parameters {  // of a row; see Rows in sampler.py
  float temperature, top_p, frequency_penalty, presence_penalty;  // the first above 0
  bool is_greedy, is_nucleus, is_biased;
  uint32_t seed_high, seed_low, candidate, step;
};

struct Ranked {
  float value;
  int32_t id;
};

// ---- reading a row

inline Lanes lanes(const float* x) { return *reinterpret_cast<const LanesAnywhere*>(x); }

// x[i], x[i + 1] and so on; what lies beyond x[n − 1] is −∞: below every number, and its exponential is 0.
inline Lanes lanes(const float* x, size_t i, size_t n) {
  if (i + W <= n) return lanes(x + i);
  Lanes rest = everywhere(-INFINITE);
  std::memcpy(&rest, x + i, (n - i) * sizeof(float));
  return rest;
}

// Σ term(i) over i = 0, W, 2 W and so on below n, where every term is a vector.
template <class Term>
double sum(size_t n, const Term& term) {
  double whole = 0;
  for (size_t i = 0; i < n;) {
    Lanes part = {};
    for (const size_t end = std::min(n, i + PART); i < end; i += W) part += term(i);
    whole += total(part);
  }
  return whole;
}

inline bool all_finite(const float* x, size_t n) {
  Lanes zeros = {};  // 0 · x is NaN for an x that is not finite, and so is what it is added to
  size_t i = 0;
  for (; i + W <= n; i += W) zeros += lanes(x + i) * 0.0f;
  float rest = total(zeros);
  for (; i < n; i++) rest += x[i] * 0.0f;
  return rest == 0;
}

// The first `count` ids of x [n] in the order (−x, id), count ≤ n. −0 and +0 are equal.
inline void rank(const float* x, size_t n, Ranked* first, size_t count) {
  std::fill_n(first, count, Ranked{-INFINITE, 0});
  const float& last = first[count - 1].value;
  for (size_t i = 0; i < n; i += W)
    for (uint32_t above = bits(lanes(x, i, n) > last); above; above &= above - 1) {
      const size_t id = i + __builtin_ctz(above);
      if (!(x[id] > last)) continue;  // others of these lanes have come before it
      size_t place = count - 1;
      for (; place > 0 && x[id] > first[place - 1].value; place--) first[place] = first[place - 1];
      first[place] = {x[id], int32_t(id)};
    }
}

// ---- 1 report

struct Report {
  Ranked top[TOP];
  float log_total;  // of the exponentials of all logits less the maximum

  float logprob(float logit) const { return (logit - top[0].value) - log_total; }
};

inline Report report(const float* logits, size_t V) {
  Report r;
  rank(logits, V, r.top, std::min(V, TOP));
  const double total = sum(V, [&](size_t i) { return exp(lanes(logits, i, V) - r.top[0].value); });
  r.log_total = log(everywhere(float(total)))[0];
  return r;
}

// ---- 2 adjust

inline void adjust(const float* logits, const float* bias, const int32_t* counts, size_t V, const Parameters& row,
                   float* z) {
  for (size_t v = 0; v < V; v++) z[v] = row.is_biased ? logits[v] + bias[v] : logits[v];
  for (size_t v = 0; v < V; v++) {
    z[v] -= row.frequency_penalty * float(counts[v]);
    z[v] -= counts[v] > 0 ? row.presence_penalty : 0;
  }
}

// ---- 5 nucleus

struct Kept {
  float above;  // every id of larger z is kept,
  size_t tied;  // and so many of those of this z, the first ones
};

// Of `z` [n] and their weights `e` [n]. In the order (−z, id) an id is kept if the weight before it is below `enough`;
// the first one always is. Both arrays are used up; each has W places more.
//
// What is left are the z from low to high that the smallest one kept can be. If the weight above their middle is
// `enough`, it is above the middle too, else at or below. In the end one value is left, of which those are kept before
// which the weight is not yet enough.
inline Kept nucleus(float* z, float* e, size_t n, float low, float high, double enough) {
  double before = 0;  // the weight of all that is larger than high
  while (low < high) {
    float middle = low / 2 + high / 2;  // the sum of two large ones would be ∞
    if (!(low <= middle && middle < high)) middle = low;
    const double more = sum(n, [&](size_t i) { return lanes(z, i, n) > middle ? lanes(e + i) : Lanes{}; });
    const bool is_above = before + more >= enough;
    if (!is_above) before += more;
    const float least = is_above ? middle : -INFINITE, most = is_above ? high : middle;
    Lanes lowest = everywhere(INFINITE), highest = everywhere(-INFINITE);
    size_t left = 0;
    for (size_t i = 0; i < n; i += W) {
      const Lanes values = lanes(z, i, n), weights = lanes(e + i);
      const auto stays = (values > least) & (values <= most);
      lowest = stays & (values < lowest) ? values : lowest;
      highest = stays & (values > highest) ? values : highest;
      compress(z + left, values, bits(stays));
      compress(e + left, weights, bits(stays));
      left += __builtin_popcount(bits(stays));
    }
    n = left, low = lowest[0], high = highest[0];
    for (size_t lane = 1; lane < W; lane++) low = std::min(low, lowest[lane]), high = std::max(high, highest[lane]);
  }
  size_t tied = 1;
  while (tied < n && before + double(tied) * e[0] < enough) tied++;
  return {low, tied};
}

// ---- 6 draw

// 20 rounds of threefry2x32 on x0 and x1; see reference/prng.py.
template <class Word>
inline void threefry2x32(uint32_t k0, uint32_t k1, Word& x0, Word& x1) {
  constexpr int ROTATIONS[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t schedule[] = {k0, k1, k0 ^ k1 ^ 0x1BD11BDAu};
  x0 += k0, x1 += k1;
#pragma GCC unroll 5
  for (uint32_t block = 0; block < 5; block++) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const int r = ROTATIONS[block % 2][i];
      x0 += x1;
      x1 = ((x1 << r) | (x1 >> (32 - r))) ^ x0;
    }
    x0 += schedule[(block + 1) % 3];
    x1 += schedule[(block + 2) % 3] + block + 1;
  }
}

struct StepKey {
  uint32_t k0, k1;
  explicit StepKey(const Parameters& row) : k0(row.candidate), k1(row.step) {
    threefry2x32(row.seed_high, row.seed_low, k0, k1);
  }
};

// The 64 random bits of the ids from `first` on.
struct TokenWords {
  Words x0, x1{};
  TokenWords(StepKey key, uint32_t first) : x0(COUNTING + first) { threefry2x32(key.k0, key.k1, x0, x1); }
};

// Standard Gumbel noise; the formula and its reasons are the reference's.
inline Lanes gumbel(Words x0, Words x1) {
  const auto high = (Integers)x0 < 0;
  const Lanes w0 = __builtin_convertvector(high ? ~x0 : x0, Lanes);
  const Lanes w1 = __builtin_convertvector(high ? ~x1 : x1, Lanes);
  const Lanes w = w0 * 0x1p-32f + (w1 + 0.5f) * 0x1p-64f;
  return -log(high ? -log(w) : -log1p(-w));
}

// No less than the noise of these bits: g = −ln −ln(1 − u) ≤ −ln u, for −ln(1 − u) ≥ u; u ≥ x0 2⁻³²; and the bits of a
// float, as an integer over 2²³ and less 127, are no more than its binary logarithm, whose chords they draw. A
// thousandth is more than all roundings here and in `gumbel` together.
inline Lanes most_gumbel(Words x0) {
  constexpr float LN_2 = 0x1.62e43p-1f;
  const Lanes x = __builtin_convertvector(x0, Lanes);
  return (127 + 32) * LN_2 + 0.001f - __builtin_convertvector((Integers)x, Lanes) * (LN_2 * 0x1p-23f);
}
constexpr float MOST_GUMBEL = 45.07f;  // of any bits

// The kept id of the largest s + g; the lowest one on a tie. largest: the first of the ranking of z [V].
//
// An id whose noise would have to be more than it can be is passed over, before its bits are computed or after. Rounding
// keeps order, so from s + (the most that g can be) < best follows s + g < best of the rounded sums.
inline int32_t draw(const float* z, size_t V, Ranked largest, Kept kept, const Parameters& row) {
  const StepKey key(row);
  const TokenWords own(key, largest.id);
  Ranked best = {gumbel(own.x0, own.x1)[0], largest.id};  // its s is 0
  for (size_t i = 0; i < V; i += W) {
    const Lanes values = lanes(z, i, V);
    uint32_t candidates = bits(values > kept.above);
    for (uint32_t tied = kept.tied ? bits(values == kept.above) : 0; tied && kept.tied; tied &= tied - 1, kept.tied--)
      candidates |= tied & -tied;
    if (!candidates) continue;
    const Lanes s = (values - largest.value) / row.temperature;
    candidates &= bits(s + MOST_GUMBEL >= best.value);
    if (!candidates) continue;
    const TokenWords words(key, uint32_t(i));
    candidates &= bits(s + most_gumbel(words.x0) >= best.value);
    if (!candidates) continue;
    const Lanes scores = s + gumbel(words.x0, words.x1);
    for (; candidates; candidates &= candidates - 1) {
      const Ranked one = {scores[__builtin_ctz(candidates)], int32_t(i + __builtin_ctz(candidates))};
      if (one.value > best.value || (one.value == best.value && one.id < best.id)) best = one;
    }
  }
  return best.id;
}

// ---- the token of a row

// logits are finite; top: the first of their ranking.
inline int32_t sample(const float* logits, const float* bias, const int32_t* counts, size_t V, const Parameters& row,
                      Ranked top) {
  static thread_local std::vector<float> scratch;  // kept for its memory
  const size_t room = V + W;
  scratch.resize(std::max(scratch.size(), 3 * room));
  float *adjusted = scratch.data(), *left = adjusted + room, *weights = left + room;
  const float* z = logits;
  if (row.is_biased || row.frequency_penalty != 0 || row.presence_penalty != 0) {
    adjust(logits, bias, counts, V, row, adjusted);
    z = adjusted;
    rank(z, V, &top, 1);
  }
  if (row.is_greedy) return top.id;
  Kept kept = {-INFINITE, 0};
  if (row.is_nucleus) {
    Lanes lowest = everywhere(top.value);
    const double total = sum(V, [&](size_t i) {
      const Lanes values = lanes(z, i, V), e = exp((values - top.value) / row.temperature);
      lowest = (values < lowest) & (values > -INFINITE) ? values : lowest;
      std::memcpy(left + i, &values, sizeof values);
      std::memcpy(weights + i, &e, sizeof e);
      return e;
    });
    float low = lowest[0];
    for (size_t lane = 1; lane < W; lane++) low = std::min(low, lowest[lane]);
    kept = nucleus(left, weights, V, low, top.value, double(row.top_p) * total);
  }
  return draw(z, V, top, kept, row);
}

}  // namespace gnomon
