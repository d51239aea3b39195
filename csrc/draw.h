// One counter of Philox 4x32-10 (Salmon et al. 2011) and the normals that its words make (Box & Muller 1958), for CPUs and GPUs
// alike. Specification: purify_engine/reference/philox.py. No branches and no library calls in float, so that a loop over lanes
// becomes vectors.
#pragma once

#include <cmath>
#include <cstdint>

#include "isa.h"

namespace purify::PURIFY_ISA {

constexpr double kPi = 3.14159265358979323846;

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kKeyIncrement0 = 0x9E3779B9u, kKeyIncrement1 = 0xBB67AE85u;
constexpr int kRounds = 10;

// The words of a counter; word k serves element 4 * c0 + k of an image.
struct Counter {
  uint32_t c0, c1, c2, c3;
};

PURIFY_BOTH inline Counter philox_block(Counter c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * c.c0, product1 = uint64_t{kMultiplier1} * c.c2;
    c.c0 = static_cast<uint32_t>(product1 >> 32) ^ c.c1 ^ k0;
    c.c2 = static_cast<uint32_t>(product0 >> 32) ^ c.c3 ^ k1;
    c.c1 = static_cast<uint32_t>(product1);
    c.c3 = static_cast<uint32_t>(product0);
    k0 += kKeyIncrement0;
    k1 += kKeyIncrement1;
  }
  return c;
}

// log(u) for u in (0, 1], the polynomial of Cephes' logf: u = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
PURIFY_BOTH inline float log_unit(float u) {
  const int32_t bits = bit_cast<int32_t>(u);
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;
  const float f = bit_cast<float>(bits - exponent * (1 << 23)) - 1.0f;
  const float e = static_cast<float>(exponent);
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float square = f * f;
  const float low = p * f * square - 0.5f * square - 2.12194440e-4f * e;
  return f + low + 0.693359375f * e;
}

// cos and sin of 2 pi word / 2^32, reduced to the nearest quarter turn in integers, hence exactly. Polynomials of Cephes' sinf.
PURIFY_BOTH inline void turn(uint32_t word, float& cosine, float& sine) {
  const uint32_t quarter = (word + 0x20000000u) >> 30;
  const float x = static_cast<float>(static_cast<int32_t>(word - (quarter << 30))) * static_cast<float>(2 * kPi / 4294967296.0);
  const float square = x * x;
  const float s = x + x * square * (-1.6666654611e-1f + square * (8.3321608736e-3f - square * 1.9515295891e-4f));
  const float c = 1.0f - 0.5f * square +
                  square * square * (4.166664568298827e-2f + square * (-1.388731625493765e-3f + square * 2.443315711809948e-5f));
  const uint32_t odd = 0u - (quarter & 1u);  // all ones where sine and cosine change places
  const uint32_t s_bits = bit_cast<uint32_t>(s), c_bits = bit_cast<uint32_t>(c);
  cosine = bit_cast<float>(((s_bits & odd) | (c_bits & ~odd)) ^ (((quarter + 1u) & 2u) << 30));
  sine = bit_cast<float>(((c_bits & odd) | (s_bits & ~odd)) ^ ((quarter & 2u) << 30));
}

// The word as a float, rounded once.
PURIFY_BOTH inline float rounded(uint32_t word) {
#ifdef __CUDA_ARCH__
  return static_cast<float>(word);
#else
  // Neither half needs rounding, their sum does. (AVX2 converts signed integers only.)
  const float high = static_cast<float>(static_cast<int32_t>(word >> 16));
  const float low = static_cast<float>(static_cast<int32_t>(word & 0xFFFFu));
  return high * 65536.0f + low;
#endif
}

// r cos(theta) and r sin(theta) of two words.
PURIFY_BOTH inline void box_muller(uint32_t radius, uint32_t angle, float& first, float& second) {
  const float r = std::sqrt(-2.0f * log_unit(rounded(radius) * 0x1p-32f + 0x1p-33f));
  float cosine, sine;
  turn(angle, cosine, sine);
  first = r * cosine;
  second = r * sine;
}

PURIFY_BOTH inline void box_muller(uint32_t radius, uint32_t angle, double& first, double& second) {
  const double r = std::sqrt(-2.0 * std::log(radius * 0x1p-32 + 0x1p-33));
#ifdef __CUDA_ARCH__
  double sine, cosine;
  sincospi(angle * 0x1p-31, &sine, &cosine);  // sin and cos would bring a table for huge angles along, in slow memory
  first = r * cosine;
  second = r * sine;
#else
  const double theta = 2 * kPi * (angle * 0x1p-32);
  first = r * std::cos(theta);
  second = r * std::sin(theta);
#endif
}

}  // namespace purify::PURIFY_ISA
