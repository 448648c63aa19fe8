// Functions of every lane of a vector. Each is one sequence of IEEE operations whatever the other lanes hold, so a
// result depends on its argument alone (and on the instruction set: `fused` rounds once or twice). No branch, no table;
// rounding is to nearest, see FloatingPoint.

#pragma once

#include <cstdint>

#include "lanes.h"

namespace gnomon {

// eˣ, off by less than one unit in the last place; subnormal results too. −∞ gives 0, ∞ gives ∞, NaN gives NaN.
//
//   1 limit    x to where the result neither is 0 nor ∞, and a little beyond
//   2 reduce   x = n ln 2 + r, |r| ≤ ln 2 / 2: ln 2 is cut in two, so that n times the first part is exact
//   3 expand   eʳ = 1 + r + r² q(r), q of degree 4: of all such the one whose largest relative error, 2⁻²⁸, is least
//   4 scale    by 2ⁿ in two steps: 2ⁿ itself may be too large or too small for a float32
inline Lanes exp(Lanes x) {
  constexpr float LOWEST = -104, HIGHEST = 89;          // eˣ rounds to 0 and to ∞
  constexpr float LOG2_E = 0x1.715476p+0f;
  constexpr float LN_2 = 0x1.63p-1f, REST = -0x1.bd0106p-13f;
  constexpr float NEAREST = 0x1.8p+23f;                 // added, it leaves the nearest integer in the lowest bits
  constexpr float Q[] = {0x1.6a3d04p-10f, 0x1.123856p-7f, 0x1.5558bep-5f, 0x1.555494p-3f, 0x1.fffffcp-2f};
  x = x < LOWEST ? everywhere(LOWEST) : x;  // NaN is neither below nor above
  x = x > HIGHEST ? everywhere(HIGHEST) : x;
  const Lanes rounded = fused(everywhere(NEAREST), x, everywhere(LOG2_E));
  const Lanes n = rounded - NEAREST;
  const Lanes r = fused(fused(x, n, everywhere(-LN_2)), n, everywhere(-REST));
  Lanes q = everywhere(Q[0]);
  for (int i = 1; i < 5; i++) q = fused(everywhere(Q[i]), q, r);
  const Lanes power = fused(r, r * r, q) + 1.0f;
  const Words steps = (Words)rounded - (Words)everywhere(NEAREST);  // n in two's complement
  const Words half = (Words)((Integers)steps >> 1);
  const auto two_to = [](Words n) { return (Lanes)((n + 127) << 23); };
  return power * two_to(half) * two_to(steps - half);
}

// 2ⁿ (1 + f) → its logarithm, n ln 2 + f − f²/2 + f³ p(f), p of degree 8: of all such the one whose largest error
// relative to log(1 + f), 2⁻³⁰, is least. √½ − 1 ≤ f ≤ √2 − 1, but that f ends a little beyond where log1p cuts.
inline Lanes log_of_parts(Lanes n, Lanes f) {
  constexpr float LN_2 = 0x1.63p-1f, REST = -0x1.bd0106p-13f;  // n times the first is exact
  constexpr float P[] = {0x1.1457a8p-4f,  -0x1.de3c16p-4f, 0x1.e6f06ap-4f, -0x1.fc2208p-4f, 0x1.233768p-3f,
                         -0x1.555c4ep-3f, 0x1.99a4b6p-3f,  -0x1.000006p-2f, 0x1.555548p-2f};
  Lanes p = everywhere(P[0]);
  for (int i = 1; i < 9; i++) p = fused(everywhere(P[i]), p, f);
  const Lanes square = f * f, bent = fused(square * -0.5f, square * f, p);
  return fused(f + fused(bent, n, everywhere(REST)), n, everywhere(LN_2));
}

// ln x for 0 < x < ∞, subnormal x too, off by less than one unit in the last place.
inline Lanes log(Lanes x) {
  constexpr float SMALLEST = 0x1p-126f, ROOT = 0x1.6a09e6p-1f;  // of the normal ones; √½
  const auto is_small = x < SMALLEST;
  const Words bits = (Words)(is_small ? x * 0x1p23f : x) - (Words)everywhere(ROOT);  // x = 2ⁿ m with √½ ≤ m < √2
  const Lanes n = __builtin_convertvector((Integers)bits >> 23, Lanes) - (is_small ? everywhere(23.0f) : Lanes{});
  const Lanes m = (Lanes)((bits & 0x7FFFFFu) + (Words)everywhere(ROOT));
  return log_of_parts(n, m - 1.0f);
}

// ln(1 + x) for −½ ≤ x ≤ 0, off by less than one unit in the last place; 1 + 2x is exact where it is used.
inline Lanes log1p(Lanes x) {
  const auto is_far = x < 0x1.6a09e6p-1f - 1.0f;
  return log_of_parts(is_far ? everywhere(-1.0f) : Lanes{}, is_far ? 1.0f + 2.0f * x : x);
}

// The hyperbolic tangent, off by less than two units in the last place: near 0 by a polynomial, x + x³ p(x²) with p of
// degree 4, elsewhere from 1 − 2 / (e²ˣ + 1). Both are computed for every lane.
inline Lanes tanh(Lanes x) {
  constexpr float NEAR = 0.55f;
  constexpr float P[] = {-0x1.b191f2p-8f, 0x1.5d3022p-6f, -0x1.b9a19ap-5f, 0x1.110ffp-3f, -0x1.555554p-2f};
  const Words sign = (Words)x & 0x80000000u;
  const Lanes size = (Lanes)((Words)x ^ sign), square = x * x;
  Lanes p = everywhere(P[0]);
  for (int i = 1; i < 5; i++) p = fused(everywhere(P[i]), p, square);
  const Lanes near = fused(size, size * square, p), far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
  return (Lanes)((Words)(size < NEAR ? near : far) | sign);
}

// The error function, off by less than two units in the last place: near 0 by a polynomial, x + x p(x²) with p of degree
// 6, elsewhere from 1 − e^q(|x|) with q of degree 8, the logarithm of what is missing to 1. Both are computed for every
// lane.
inline Lanes erf(Lanes x) {
  constexpr float NEAR = 1, ALL = 4;  // from ALL on it rounds to 1
  constexpr float P[] = {0x1.4a9dacp-14f, -0x1.a46b4p-11f, 0x1.541636p-8f, -0x1.b7fb38p-6f,
                         0x1.ce2d18p-4f,  -0x1.81273ep-2f, 0x1.06eba8p-3f};
  constexpr float Q[] = {0x1.895814p-20f, -0x1.697ea2p-15f, 0x1.2d7f7ep-11f, -0x1.321f44p-8f, 0x1.ad4bcap-6f,
                         -0x1.c181f6p-4f, -0x1.43a80cp-1f,  -0x1.214c36p+0f, 0x1.29695p-12f};
  const Words sign = (Words)x & 0x80000000u;
  Lanes size = (Lanes)((Words)x ^ sign), p = everywhere(P[0]), q = everywhere(Q[0]);
  size = size > ALL ? everywhere(ALL) : size;  // NaN is not above
  const Lanes square = size * size;
  for (int i = 1; i < 7; i++) p = fused(everywhere(P[i]), p, square);
  for (int i = 1; i < 9; i++) q = fused(everywhere(Q[i]), q, size);
  const Lanes near = fused(size, size, p), far = 1.0f - exp(q);
  return (Lanes)((Words)(size < NEAR ? near : far) | sign);
}

}  // namespace gnomon
