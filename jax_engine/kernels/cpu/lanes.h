// Vectors of this CPU: how wide they are, and the operations on them that decide the bits. Each is one sequence of IEEE
// operations, and the compiler keeps it: no -ffast-math, -ffp-contract=off.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace gnomon {

// W lanes of float32; as many sums of a tile as stay in registers.
#if defined(__AVX512F__)
constexpr size_t W = 16, SUMS = 24;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr size_t W = 8, SUMS = 12;
#elif defined(__aarch64__)
constexpr size_t W = 4, SUMS = 24;
#else
constexpr size_t W = 4, SUMS = 12;
#endif

typedef float Lanes __attribute__((vector_size(4 * W)));
typedef float LanesAnywhere __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * W)));
typedef int32_t Integers __attribute__((vector_size(4 * W)));
typedef uint32_t WordsAnywhere __attribute__((vector_size(4 * W), aligned(2), may_alias));

template <size_t... lane>
constexpr Words counting(std::index_sequence<lane...>) {
  return Words{uint32_t(lane)...};
}
constexpr Words COUNTING = counting(std::make_index_sequence<W>());  // 0, 1, 2, …: the number of every lane

inline Lanes everywhere(float x) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(x);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_set1_ps(x);
#elif defined(__aarch64__)
  return vdupq_n_f32(x);
#else
  return Lanes{x, x, x, x};
#endif
}

// Those of W floats from x[at] on that are among the first `count`; zero for the others.
inline Lanes load_some(const float* x, size_t at, size_t count) {
  if (at + W <= count) return *reinterpret_cast<const LanesAnywhere*>(x + at);
  Lanes some = {};
  if (at < count) std::memcpy(&some, x + at, (count - at) * sizeof(*x));
  return some;
}

// Leaves those of W lanes in x[at] and on that are among the first `count`.
inline void store_some(float* x, size_t at, size_t count, Lanes lanes) {
  if (at + W <= count) *reinterpret_cast<LanesAnywhere*>(x + at) = lanes;
  else if (at < count) std::memcpy(x + at, &lanes, (count - at) * sizeof(*x));
}

inline Lanes fused(Lanes sum, Lanes x, Lanes w) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(x, w, sum);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_ps(x, w, sum);
#elif defined(__aarch64__)
  return vfmaq_f32(sum, x, w);
#else
  return sum + x * w;
#endif
}

inline float total(Lanes sum) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(sum);
#elif defined(__AVX2__) && defined(__FMA__)
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
#endif
}

// A bit for every lane in which a comparison holds, as `bits(x > y)`; the first lane's is the lowest.
inline uint32_t bits(Integers holds) {
#if defined(__AVX512F__)
  return _mm512_cmplt_epi32_mask((__m512i)holds, _mm512_setzero_si512());
#elif defined(__AVX2__) && defined(__FMA__)
  return uint32_t(_mm256_movemask_ps((__m256)holds));
#elif defined(__x86_64__)
  return uint32_t(_mm_movemask_ps((__m128)holds));
#else
  return uint32_t((holds[0] & 1) | (holds[1] & 2) | (holds[2] & 4) | (holds[3] & 8));
#endif
}

// Writes the lanes of x whose bit is set, one after the other, and anything behind them, W floats in all.
inline void compress(float* to, Lanes x, uint32_t lanes) {
#if defined(__AVX512F__)
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(__mmask16(lanes), x));
#else
  for (; lanes; lanes &= lanes - 1) *to++ = x[__builtin_ctz(lanes)];
#endif
}

// Has the compiler load a vector once, not anew for every use of it: a tile has more multiply-adds than loads to spare.
template <class Vector>
inline void hold(Vector& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

}  // namespace gnomon
