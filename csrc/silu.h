// The sigmoid that SiLU multiplies by, in a form that loops over it become vectors of.
#pragma once

#include <cmath>
#include <cstdint>

#include "isa.h"

namespace purify::PURIFY_ISA {

// exp(x) for x <= 0 by the polynomial of Cephes' expf, and 0 below the smallest normal number. (Holding x to a range instead would let
// the compiler multiply by the tiny constant at its end, speculatively and at the price of a denormal, for every x.)
inline float exponential(float x) {
  const float shifted = x * 1.44269504088896341f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer, in the lowest bits
  const float n = shifted - 12582912.0f;
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float fraction = p * r * r + r + 1.0f;
  const float value = fraction * bit_cast<float>((bit_cast<uint32_t>(shifted) << 23) + (127u << 23));
  return x < -87.0f ? 0.0f : value;
}

inline double exponential(double x) { return std::exp(x); }

template <typename T>
inline T sigmoid(T x) {
  const T small = exponential(-std::abs(x));
  return (x < 0 ? small : T(1)) / (T(1) + small);
}

}  // namespace purify::PURIFY_ISA
