// Functions of every lane of a vector. Each is one sequence of IEEE operations whatever the other lanes hold, so a
// result depends on its argument alone (and on the instruction set: `fused` rounds once or twice). No branch, no table;
// rounding is to nearest, see FloatingPoint.

#pragma once

#include <cstdint>

#include "lanes.h"

namespace gnomon {

inline Lanes all(float x) { return x - Lanes{}; }  // x − 0 is x, −0 too

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
  x = x < LOWEST ? all(LOWEST) : x;  // NaN is neither below nor above
  x = x > HIGHEST ? all(HIGHEST) : x;
  const Lanes rounded = fused(all(NEAREST), x, all(LOG2_E));
  const Lanes n = rounded - NEAREST;
  const Lanes r = fused(fused(x, n, all(-LN_2)), n, all(-REST));
  Lanes q = all(Q[0]);
  for (int i = 1; i < 5; i++) q = fused(all(Q[i]), q, r);
  const Lanes power = fused(r, r * r, q) + 1.0f;
  const Words steps = (Words)rounded - (Words)all(NEAREST);  // n in two's complement
  const Words half = (Words)((Integers)steps >> 1);
  const auto two_to = [](Words n) { return (Lanes)((n + 127) << 23); };
  return power * two_to(half) * two_to(steps - half);
}

// The hyperbolic tangent, off by less than two units in the last place: near 0 by a polynomial, x + x³ p(x²) with p of
// degree 4, elsewhere from 1 − 2 / (e²ˣ + 1). Both are computed for every lane.
inline Lanes tanh(Lanes x) {
  constexpr float NEAR = 0.55f;
  constexpr float P[] = {-0x1.b191f2p-8f, 0x1.5d3022p-6f, -0x1.b9a19ap-5f, 0x1.110ffp-3f, -0x1.555554p-2f};
  const Words sign = (Words)x & 0x80000000u;
  const Lanes size = (Lanes)((Words)x ^ sign), square = x * x;
  Lanes p = all(P[0]);
  for (int i = 1; i < 5; i++) p = fused(all(P[i]), p, square);
  const Lanes near = fused(size, size * square, p), far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
  return (Lanes)((Words)(size < NEAR ? near : far) | sign);
}

}  // namespace gnomon
