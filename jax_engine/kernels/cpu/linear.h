// y[r, o] = Σ_k x[r, k] · weight[o, k] for the live rows r, with weights that were packed before.
//
// Why the bits of a row depend on that row and the weights alone. Every element of y is one lane, computed by one
// sequence of operations, whatever is computed beside it:
//
//   1 start   zero
//   2 add     from the first k to the last a fused multiply-add each (or a dot of two for every pair of k); in its last
//             pair an odd k is alone
//
// There is no third: nothing is added across lanes. A `tile` runs this sequence for several rows and outputs side by
// side, so that what it loads is used more than once. Which rows it takes together, in how many blocks it goes along k
// (y holds the sums in between, whole), how wide a panel is and which thread computes it decide when a step is done,
// never what it does. Dead rows are neither read nor written.
//
// Packed, the weights of LANES outputs are a panel, in which they stand as a tile reads them: the first word of every
// output, then the second, and so on. A word is a weight in float32 or two in bfloat16, the first k of the pair in its
// lower half. What fills up the last panel, or an odd k's word, is zero.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "lanes.h"
#include "threads.h"

namespace gnomon {

constexpr size_t VECTORS = 3, LANES = VECTORS * W;  // of a panel: SUMS / VECTORS rows of it are a tile
constexpr size_t MOST_ROWS = SUMS / VECTORS;
constexpr size_t BLOCK = (128 << 10) / (4 * LANES);  // words along k: stay in the second-level cache for all rows
constexpr size_t AHEAD = 4096 / 4;                   // words that are fetched before they are needed

// ---- arithmetics: what x is, how many k a word has, and how they are added to a sum

struct Float32 {
  using Input = float;
  static constexpr size_t OF_WORD = 1, BYTES = 4;  // a weight
  static Lanes weight(Words word, size_t) { return (Lanes)word; }
  static Lanes input(const Input* x) { return everywhere(*x); }
  static Lanes add(Lanes sum, Lanes x, Lanes w) { return fused(sum, x, w); }
};

struct BFloat16 : Float32 {  // a weight is the upper half of a float32
  static constexpr size_t OF_WORD = 2, BYTES = 2;
  static Lanes weight(Words word, size_t half) { return (Lanes)(half == 0 ? word << 16 : word & 0xFFFF0000u); }
};
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first of a pair is the lower half of its word");

#if defined(__AVX512BF16__)
struct BFloat16Rounded {  // x is rounded to bfloat16 as well: half the work where arithmetic is the limit
  using Input = uint32_t;  // a pair
  static constexpr size_t OF_WORD = 1, BYTES = 2;
  static __m512bh weight(Words word, size_t) { return (__m512bh)word; }
  static __m512bh input(const Input* x) { return (__m512bh)_mm512_set1_epi32(int(*x)); }
  static Lanes add(Lanes sum, __m512bh x, __m512bh w) { return _mm512_dpbf16_ps(sum, x, w); }
};
#else
using BFloat16Rounded = BFloat16;  // this CPU has no such instruction: x stays float32
#endif

// ---- one product

// R rows of x times a panel, for `from` ≤ k < `to`: y[r], of LANES. At 0 the sums start, later they go on from there.
template <class A, size_t R>
void tile(const typename A::Input* const (&x)[R], const uint32_t* panel, size_t from, size_t to, float* const (&y)[R]) {
  Lanes sum[R][VECTORS] = {};
  if (from > 0)
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++)
#pragma GCC unroll 3
      for (size_t n = 0; n < VECTORS; n++) sum[r][n] = load_some(y[r], n * W, LANES);
  const uint32_t* word = panel + from / A::OF_WORD * LANES;
  const auto add = [&](size_t k, size_t half) __attribute__((always_inline)) {
    decltype(A::weight(Words{}, 0)) w[VECTORS];
#pragma GCC unroll 3
    for (size_t n = 0; n < VECTORS; n++) w[n] = A::weight(*reinterpret_cast<const WordsAnywhere*>(word + n * W), half);
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++) {
      auto one = A::input(x[r] + k);
      hold(one);
#pragma GCC unroll 3
      for (size_t n = 0; n < VECTORS; n++) sum[r][n] = A::add(sum[r][n], one, w[n]);
    }
  };
  size_t k = from;
  for (; k + A::OF_WORD <= to; k += A::OF_WORD, word += LANES) {
#pragma GCC unroll 3
    for (size_t line = 0; line < LANES; line += 16) __builtin_prefetch(word + AHEAD + line);
#pragma GCC unroll 2
    for (size_t half = 0; half < A::OF_WORD; half++) add(k + half, half);
  }
  if constexpr (A::OF_WORD > 1)
    if (k < to) add(k, 0);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; r++)
#pragma GCC unroll 3
    for (size_t n = 0; n < VECTORS; n++) store_some(y[r], n * W, LANES, sum[r][n]);
}

// A tile of `rows` ≤ R rows.
template <class A, size_t R = MOST_ROWS>
void any_tile(const typename A::Input* const* x, const uint32_t* panel, size_t rows, size_t from, size_t to,
              float* const* y) {
  if constexpr (R > 1)
    if (rows < R) return any_tile<A, R - 1>(x, panel, rows, from, to, y);
  const typename A::Input* own_x[R];
  float* own_y[R];
  std::copy_n(x, R, own_x), std::copy_n(y, R, own_y);
  tile<A, R>(own_x, panel, from, to, own_y);
}

// ---- all products of one x

struct Output {  // one weight of those that x is multiplied by, and the result
  size_t out;
  const uint32_t* panels;
  float* y;                                                   // [R, out]
  size_t count() const { return (out + LANES - 1) / LANES; }  // of panels
};

template <class Input>
struct Rows {
  size_t in;
  std::vector<size_t> live;     // which of y's they are
  std::vector<const Input*> x;  // those
};

// The i-th panel of a weight for all rows. The sums of a last panel, some of whose lanes are no one's, are not y's own.
template <class A>
void multiply(const Rows<typename A::Input>& rows, const Output& to, size_t i) {
  const size_t words = (rows.in + A::OF_WORD - 1) / A::OF_WORD, count = rows.x.size();
  const size_t outputs = std::min(LANES, to.out - i * LANES);
  float* const column = to.y + i * LANES;
  std::vector<float> rest(outputs < LANES ? count * LANES : 0);
  const auto sums = [&](size_t r) { return rest.empty() ? column + rows.live[r] * to.out : &rest[r * LANES]; };
  const size_t step = count > MOST_ROWS ? BLOCK * A::OF_WORD : rows.in;
  for (size_t from = 0, end; from < rows.in; from = end) {
    end = std::min(rows.in, from + step);
    for (size_t first = 0; first < count; first += MOST_ROWS) {
      const size_t some = std::min(MOST_ROWS, count - first);
      float* y[MOST_ROWS];
      for (size_t r = 0; r < some; r++) y[r] = sums(first + r);
      any_tile<A>(&rows.x[first], to.panels + i * words * LANES, some, from, end, y);
    }
  }
  for (size_t r = 0; r < count && !rest.empty(); r++) std::copy_n(sums(r), outputs, column + rows.live[r] * to.out);
}

#if defined(__AVX512BF16__)
// Pairs of a row of x, rounded to the nearest bfloat16, ties to even; an odd last one is paired with zero.
inline void round_pairs(const float* x, size_t in, uint32_t* pairs) {
  for (size_t k = 0; k < in; k += 2 * W) {
    const size_t left = in - k;
    const __m512bh both = _mm512_cvtne2ps_pbh(load_some(x, k + W, in), load_some(x, k, in));
    std::memcpy(pairs + k / 2, &both, std::min<size_t>(2 * W, left + left % 2) * 2);
  }
}
#endif

// x [R, in] times every weight; rows that are not live [R] are neither read nor written.
template <class A>
void products(const float* x, size_t in, const bool* live, size_t count, const std::vector<Output>& outputs) {
  Rows<typename A::Input> rows{in, {}, {}};
  size_t panels = 0, weights = 0;
  for (const Output& to : outputs) panels += to.count(), weights += to.out * in;
  for (size_t r = 0; r < count; r++)
    if (live[r]) rows.live.push_back(r);
  const size_t cost = rows.live.empty() ? 0 : weights * (A::BYTES + rows.live.size() / 4);
  if constexpr (std::is_same_v<typename A::Input, float>) {
    for (size_t r : rows.live) rows.x.push_back(x + r * in);
  } else {
#if defined(__AVX512BF16__)
    rows.in = (in + 1) / 2;
    static thread_local std::vector<uint32_t> pairs;  // of this call; kept for its memory
    pairs.resize(std::max(pairs.size(), rows.live.size() * rows.in));
    for (size_t i = 0; i < rows.live.size(); i++) rows.x.push_back(pairs.data() + i * rows.in);
    uint32_t* to = pairs.data();
    share(rows.live.size(), cost, [&](size_t i) { round_pairs(x + rows.live[i] * in, in, to + i * rows.in); });
#endif
  }
  share(panels, cost, [&](size_t i) {
    const Output* to = outputs.data();
    for (; i >= to->count(); to++) i -= to->count();
    multiply<A>(rows, *to, i);
  });
}

// ---- packing

// weight [out, in] → its panels; T is uint32_t for float32, uint16_t for bfloat16.
template <class T>
void pack(const T* weight, size_t out, size_t in, T* panels) {
  constexpr size_t OF_WORD = 4 / sizeof(T), TOGETHER = 64 / sizeof(T);  // k of a line of the cache
  const size_t words = (in + OF_WORD - 1) / OF_WORD, size = words * LANES * OF_WORD;
  share((out + LANES - 1) / LANES, out * in * sizeof(T), [&](size_t i) {
    T* panel = panels + i * size;
    if ((i + 1) * LANES > out || in % OF_WORD > 0) std::fill_n(panel, size, T(0));
    const T* from = weight + i * LANES * in;
    for (size_t k = 0; k < in; k += TOGETHER)
      for (size_t o = 0; o < std::min(LANES, out - i * LANES); o++)
        for (size_t j = k; j < std::min(in, k + TOGETHER); j++)
          panel[(j / OF_WORD * LANES + o) * OF_WORD + j % OF_WORD] = from[o * in + j];
  });
}

}  // namespace gnomon
