// y[r, o] = Σ_k x[r, k] · weight[o, k] for the live rows r, zeros for the others: a custom call of XLA for the CPU.
//
// Why the bits of a row depend on that row and the weights alone. Every element of y is computed by one sequence of
// operations, whatever is computed beside it:
//
//   1 start   a partial sum of zero in each of W lanes
//   2 add     step by step from the first k to the last, a fused multiply-add (or one dot of a pair) a lane; the last
//             step is filled up with zeros
//   3 total   the lanes are added in one fixed tree
//
// A `tile` runs this sequence for several rows and outputs side by side, so that what it loads is used more than once.
// Which rows form a panel, which outputs a block, in how many pieces a tile goes along k (partial sums are put away in
// between, whole) and which thread takes a block decide when a step is done, never what it does. Dead rows are not
// read. The compiler keeps the sequence, too: no -ffast-math, -ffp-contract=off, and every thread sets rounding and
// subnormals to IEEE's before it begins.
//
// Weights are read where they lie, [out, in], once for all rows where those are few; x is packed for every call, panel
// by panel, in the order in which tiles read it.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "lanes.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace gnomon {

namespace ffi = xla::ffi;

namespace {

// ---- arithmetics: what a weight is, how many a step takes, what x is packed to, and how the two are added to a sum

struct Float32 {
  using Weight = float;
  using Vector = Lanes;
  static constexpr size_t STEP = W;
  static Lanes load(const Weight* w) { return *reinterpret_cast<const LanesAnywhere*>(w); }
  static Vector pack(const float* x) { return load(x); }
  static Vector take(Vector x) { return hold(x), x; }
  static Lanes add(Lanes sum, Vector x, Lanes w) { return fused(sum, x, w); }
};

// x stays float32. A step takes pairs: the first of every pair, then the second, each the upper half of a float32.
struct BFloat16 {
  using Weight = uint16_t;
  struct Vector {
    Lanes first, second;
  };
  static constexpr size_t STEP = 2 * W;
  static Words load(const Weight* w) { return *reinterpret_cast<const WordsAnywhere*>(w); }
  static Vector pack(const float* x) {
    Vector pairs;
    for (size_t i = 0; i < W; i++) pairs.first[i] = x[2 * i], pairs.second[i] = x[2 * i + 1];
    return pairs;
  }
  static Vector take(Vector x) { return hold(x.first), hold(x.second), x; }
  static Lanes add(Lanes sum, Vector x, Words w) {
    return fused(fused(sum, x.first, (Lanes)(w << 16)), x.second, (Lanes)(w & 0xFFFF0000u));
  }
};
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first of a pair is the lower half of its word");

#if defined(__AVX512BF16__)
struct BFloat16Rounded {  // x is rounded to bfloat16 as well: half the work where arithmetic is the limit
  using Weight = uint16_t;
  using Vector = __m512bh;
  static constexpr size_t STEP = 2 * W;
  static Vector load(const Weight* w) { return (__m512bh)_mm512_loadu_si512(w); }
  static Vector pack(const float* x) { return _mm512_cvtne2ps_pbh(Float32::load(x + W), Float32::load(x)); }
  static Vector take(Vector x) { return hold(x), x; }
  static Lanes add(Lanes sum, Vector x, Vector w) { return _mm512_dpbf16_ps(sum, x, w); }
};
#else
using BFloat16Rounded = BFloat16;  // this CPU has no such instruction: x stays float32
#endif

// ---- one product

constexpr size_t MOST_ROWS = SUMS / 3;        // of a panel
constexpr size_t GROUP = 24;                  // outputs: whole tiles of every shape
constexpr size_t PIECE_BYTES = 32 << 10;      // of a panel: stays in the first-level cache for a group of outputs
constexpr size_t BLOCK_BYTES = 128 << 10;     // of weights: stays in the second-level cache for all panels

template <class A>
struct Product {
  size_t in, out;
  const typename A::Weight* weight;            // [out, in]
  float* y;                                    // [R, out]
  std::vector<size_t> live, dead;              // rows
  typename A::Vector* panels;                  // for each MOST_ROWS live rows, step by step, a vector of every row

  size_t steps() const { return (in + A::STEP - 1) / A::STEP; }
};

// `R` rows of a panel times `O` outputs from weight row `w` on, for from ≤ k < to; from 0 on the sums start, before the
// end they are put away, at the end y[r] gets their totals.
template <class A, size_t R, size_t O>
void tile(const typename A::Vector* x, const typename A::Weight* w, size_t in, size_t from, size_t to,
          Lanes (*carried)[R], float* const (&y)[R]) {
  Lanes sum[R][O] = {};
  if (from > 0)
    for (size_t r = 0; r < R; r++)
      for (size_t o = 0; o < O; o++) sum[r][o] = carried[o][r];
  x += from / A::STEP * R;
  const auto step = [&](auto load) __attribute__((always_inline)) {
    decltype(load(0)) weights[O];
#pragma GCC unroll 8
    for (size_t o = 0; o < O; o++) weights[o] = load(o);
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++) {
      const auto row = A::take(*x++);
#pragma GCC unroll 8
      for (size_t o = 0; o < O; o++) sum[r][o] = A::add(sum[r][o], row, weights[o]);
    }
  };
  size_t k = from;
  for (; k + A::STEP <= to; k += A::STEP)
    step([&](size_t o) __attribute__((always_inline)) {
      __builtin_prefetch(w + (o + 2 * O) * in + k);  // the next tile but one: weight rows are short for the hardware
      return A::load(w + o * in + k);
    });
  if (k < to)
    step([&](size_t o) __attribute__((always_inline)) {
      typename A::Weight rest[A::STEP] = {};
      std::memcpy(rest, w + o * in + k, (to - k) * sizeof(*w));
      return A::load(rest);
    });
#pragma GCC unroll 8
  for (size_t r = 0; r < R; r++)
#pragma GCC unroll 8
    for (size_t o = 0; o < O; o++)
      if (to < in) carried[o][r] = sum[r][o];
      else y[r][o] = total(sum[r][o]);
}

// Outputs first ≤ o < last of a panel of `rows` ≤ R rows, live[0], live[1] and so on.
template <class A, size_t R = MOST_ROWS>
void panel(const Product<A>& p, const typename A::Vector* x, const size_t* live, size_t rows, size_t first,
           size_t last) {
  if constexpr (R > 1)
    if (rows < R) return panel<A, R - 1>(p, x, live, rows, first, last);
  constexpr size_t O = std::clamp<size_t>(12 / R, 3, 8);
  const size_t pieces = 1 + p.steps() * R * sizeof(*x) / PIECE_BYTES;
  const size_t depth = (p.steps() + pieces - 1) / pieces * A::STEP;
  Lanes carried[GROUP][R];
  for (; first < last; first += GROUP) {
    size_t from = 0;
    do {
      const size_t to = std::min(p.in, from + depth), end = std::min(last, first + GROUP);
      size_t o = first;
      const auto run = [&](auto tile, size_t outputs) {
        float* y[R];
        for (size_t r = 0; r < R; r++) y[r] = p.y + live[r] * p.out + o;
        tile(x, p.weight + o * p.in, p.in, from, to, carried + (o - first), y);
        o += outputs;
      };
      while (o + O <= end) run(tile<A, R, O>, O);
      while (o < end) run(tile<A, R, 1>, 1);
      from = to;
    } while (from < p.in);
  }
}

// Outputs first ≤ o < last of all rows.
template <class A>
void block(const Product<A>& p, size_t first, size_t last) {
  for (size_t r : p.dead) std::fill(p.y + r * p.out + first, p.y + r * p.out + last, 0.0f);
  for (size_t i = 0; i < p.live.size(); i += MOST_ROWS)
    panel(p, p.panels + i * p.steps(), &p.live[i], std::min(MOST_ROWS, p.live.size() - i), first, last);
}

// Packs the panel that begins with the i-th live row of x [R, in].
template <class A>
void pack(const Product<A>& p, const float* x, size_t i) {
  auto* at = p.panels + i * p.steps();
  for (size_t k = 0; k < p.in; k += A::STEP)
    for (size_t r = i; r < std::min(i + MOST_ROWS, p.live.size()); r++) {
      const float* from = x + p.live[r] * p.in + k;
      float rest[A::STEP] = {};
      if (k + A::STEP > p.in) from = static_cast<float*>(std::memcpy(rest, from, (p.in - k) * sizeof(float)));
      *at++ = A::pack(from);
    }
}

// ---- the custom call

using Matrix = ffi::Buffer<ffi::F32, 2>;
using Mask = ffi::Buffer<ffi::PRED, 1>;

template <class A>
void product(Matrix& x, const void* weight, Mask& live, Matrix& y) {
  Product<A> p{size_t(x.dimensions()[1]), size_t(y.dimensions()[1]), static_cast<const typename A::Weight*>(weight),
               y.typed_data(), {}, {}, nullptr};
  for (size_t r = 0; r < live.element_count(); r++) (live.typed_data()[r] ? p.live : p.dead).push_back(r);
  const size_t bytes = p.in * sizeof(*p.weight);
  const size_t outputs = std::max<size_t>(1, BLOCK_BYTES / (bytes + 1) / GROUP) * GROUP;
  const size_t blocks = (p.out + outputs - 1) / outputs;
  const size_t cost = p.out * (bytes + p.in * p.live.size() / 4);
  static thread_local std::vector<typename A::Vector> panels;  // of this call; kept for its memory
  panels.resize(std::max(panels.size(), p.live.size() * p.steps()));
  p.panels = panels.data();
  const size_t count = (p.live.size() + MOST_ROWS - 1) / MOST_ROWS;
  share(count, cost, [&](size_t i) { pack(p, x.typed_data(), i * MOST_ROWS); });
  share(blocks, cost, [&](size_t i) { block(p, i * outputs, std::min(p.out, (i + 1) * outputs)); });
}

ffi::Error linear(Matrix x, ffi::AnyBuffer weight, Mask live, ffi::Result<Matrix> y,
                  bool rounded) {
  const auto rows = x.dimensions()[0], in = x.dimensions()[1], out = y->dimensions()[1];
  if (weight.dimensions().size() != 2 || weight.dimensions()[0] != out || weight.dimensions()[1] != in ||
      live.dimensions()[0] != rows || y->dimensions()[0] != rows)
    return ffi::Error::InvalidArgument("shapes are not x [R, in], weight [out, in], live [R], y [R, out]");
  const auto element = weight.element_type();
  if (element != ffi::F32 && element != ffi::BF16)
    return ffi::Error::InvalidArgument("weight is neither float32 nor bfloat16");
  const auto compute = element == ffi::F32 ? product<Float32> : rounded ? product<BFloat16Rounded> : product<BFloat16>;
  compute(x, weight.untyped_data(), live, *y);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace gnomon

XLA_FFI_DEFINE_HANDLER_SYMBOL(gnomon_linear, gnomon::linear,
                              xla::ffi::Ffi::Bind()
                                  .Arg<gnomon::Matrix>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<gnomon::Mask>()
                                  .Ret<gnomon::Matrix>()
                                  .Attr<bool>("rounded"));
