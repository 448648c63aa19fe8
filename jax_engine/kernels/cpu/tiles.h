// What attention computes with: products of rows of numbers with rows of vectors, a tile at a time, and vectors turned
// over. A lane of a tile is one sequence of fused multiply-adds, from the first k to the last, whatever is beside it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "functions.h"
#include "lanes.h"

namespace gnomon {

constexpr size_t TILE_ROWS = 6, TILE_VECTORS = SUMS / TILE_ROWS;  // at most

inline Lanes load(const float* x) { return *reinterpret_cast<const LanesAnywhere*>(x); }
inline Lanes load(const uint16_t* x) {
  typedef uint16_t Halves __attribute__((vector_size(2 * W), aligned(2), may_alias));
  return (Lanes)(__builtin_convertvector(*reinterpret_cast<const Halves*>(x), Words) << 16);
}

// The first `count` lanes from memory, the others 0.
template <class Stored>
Lanes load(const Stored* x, size_t count) {
  if (count >= W) return load(x);
  Stored rest[W] = {};
  std::memcpy(rest, x, count * sizeof(Stored));
  return load(rest);
}

// As many lanes as there is room for.
inline void store(float* at, Lanes x, size_t room = W) {
  if (room >= W) *reinterpret_cast<LanesAnywhere*>(at) = x;
  else std::memcpy(at, &x, room * sizeof(float));
}

// Lane i is lane from(i) of a and b side by side.
template <class From, size_t... I>
Lanes shuffled(Lanes a, Lanes b, From from, std::index_sequence<I...>) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, from(I)...);
#else
  return __builtin_shuffle(a, b, Words{uint32_t(from(I))...});
#endif
}

// Lane j of vector i becomes lane i of vector j: blocks of half the size change places, then halves of those.
template <size_t HALF = W / 2>
inline void transpose(Lanes (&v)[W]) {
  constexpr auto LANES = std::make_index_sequence<W>();
#pragma GCC unroll 16
  for (size_t i = 0; i < W; i++)
    if (!(i & HALF)) {
      const Lanes a = v[i], b = v[i + HALF];
      v[i] = shuffled(a, b, [](size_t j) { return j & HALF ? W + j - HALF : j; }, LANES);
      v[i + HALF] = shuffled(a, b, [](size_t j) { return j & HALF ? W + j : j + HALF; }, LANES);
    }
  if constexpr (HALF > 1) transpose<HALF / 2>(v);
}

// The largest lane, in every lane.
template <size_t HALF = W / 2>
inline Lanes largest(Lanes x) {
  const Lanes other = shuffled(x, x, [](size_t j) { return j ^ HALF; }, std::make_index_sequence<W>());
  x = x > other ? x : other;
  if constexpr (HALF > 1) return largest<HALF / 2>(x);
  else return x;
}

// c[r][j] += Σ_k a[r][k] · b[k][j], k from 0 to depth, for R rows and C vectors from the one that begins at j = at.
template <size_t R, size_t C>
void tile(const float* a, size_t a_stride, const float* const* b, size_t depth, float* c, size_t c_stride, size_t at) {
  Lanes sum[R][C];
#pragma GCC unroll 8
  for (size_t r = 0; r < R; r++)
#pragma GCC unroll 8
    for (size_t v = 0; v < C; v++) sum[r][v] = load(c + r * c_stride + at + v * W);
  for (size_t k = 0; k < depth; k++) {
    Lanes vectors[C];
#pragma GCC unroll 8
    for (size_t v = 0; v < C; v++) vectors[v] = load(b[k] + at + v * W), hold(vectors[v]);
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++) {
      const Lanes row = everywhere(a[r * a_stride + k]);
#pragma GCC unroll 8
      for (size_t v = 0; v < C; v++) sum[r][v] = fused(sum[r][v], row, vectors[v]);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < R; r++)
#pragma GCC unroll 8
    for (size_t v = 0; v < C; v++) store(c + r * c_stride + at + v * W, sum[r][v]);
}

// The same for any number of rows and vectors.
template <size_t R = TILE_ROWS>
void add_product(size_t rows, size_t vectors, const float* a, size_t a_stride, const float* const* b, size_t depth,
                 float* c, size_t c_stride) {
  for (; rows >= R; rows -= R, a += R * a_stride, c += R * c_stride) {
    size_t v = 0;
    for (; v + TILE_VECTORS <= vectors; v += TILE_VECTORS)
      tile<R, TILE_VECTORS>(a, a_stride, b, depth, c, c_stride, v * W);
    for (; v < vectors; v++) tile<R, 1>(a, a_stride, b, depth, c, c_stride, v * W);
  }
  if constexpr (R > 1)
    if (rows) add_product<R - 1>(rows, vectors, a, a_stride, b, depth, c, c_stride);
}

}  // namespace gnomon
