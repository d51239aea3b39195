// Philox 4x32-10 (Salmon et al. 2011) and Box-Muller. Specification: purify_engine/reference/philox.py.
//
// Written one lane at a time, in loops of kLanes that the compiler turns into vectors: no branches, no library calls in float. Only the
// rounds of Philox are spelt out for AVX2, whose 32 x 32 -> 64 bit product compilers do not find. Every tile takes the same path, the
// last one too, so that a normal never depends on where an image ends.
#pragma once

#include <cmath>
#include <cstdint>

#include "isa.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace purify::PURIFY_ISA {

constexpr int kLanes = 8;            // counters a tile: one vector of 32-bit words
constexpr int kTile = 4 * kLanes;    // elements a tile
constexpr double kPi = 3.14159265358979323846;

// The four words of kLanes counters: word k of counter lane `j` is w[k][j], and serves element 4 * j + k of the tile.
struct Words {
  uint32_t w[4][kLanes];
};

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kKeyIncrement0 = 0x9E3779B9u, kKeyIncrement1 = 0xBB67AE85u;
constexpr int kRounds = 10;

#ifdef __AVX2__

// Four counters, a word in the low half of each 64-bit lane; what the high halves hold is never read.
struct FourCounters {
  __m256i c0, c1, c2, c3;

  void round(__m256i k0, __m256i k1) {
    const __m256i product0 = _mm256_mul_epu32(c0, _mm256_set1_epi64x(kMultiplier0));
    const __m256i product1 = _mm256_mul_epu32(c2, _mm256_set1_epi64x(kMultiplier1));
    c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product1, 32), c1), k0);
    c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product0, 32), c3), k1);
    c1 = product1;
    c3 = product0;
  }
};

inline void store_interleaved(uint32_t* out, __m256i even, __m256i odd) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
}

inline Words philox(uint32_t first, uint32_t c1, uint64_t id, uint64_t key) {
  const __m256i start = _mm256_add_epi32(_mm256_set1_epi64x(first), _mm256_setr_epi64x(0, 2, 4, 6));
  const __m256i step = _mm256_set1_epi64x(c1), low = _mm256_set1_epi64x(id), high = _mm256_set1_epi64x(id >> 32);
  FourCounters even{start, step, low, high};
  FourCounters odd{_mm256_add_epi32(start, _mm256_set1_epi64x(1)), step, low, high};
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < kRounds; ++round) {
    even.round(_mm256_set1_epi64x(k0), _mm256_set1_epi64x(k1));
    odd.round(_mm256_set1_epi64x(k0), _mm256_set1_epi64x(k1));
    k0 += kKeyIncrement0;
    k1 += kKeyIncrement1;
  }
  Words out;
  store_interleaved(out.w[0], even.c0, odd.c0);
  store_interleaved(out.w[1], even.c1, odd.c1);
  store_interleaved(out.w[2], even.c2, odd.c2);
  store_interleaved(out.w[3], even.c3, odd.c3);
  return out;
}

#else

inline Words philox(uint32_t first, uint32_t step, uint64_t id, uint64_t key) {
  Words out;
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t c0 = first + lane, c1 = step, c2 = static_cast<uint32_t>(id), c3 = static_cast<uint32_t>(id >> 32);
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < kRounds; ++round) {
      const uint64_t product0 = uint64_t{kMultiplier0} * c0, product1 = uint64_t{kMultiplier1} * c2;
      c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
      c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
      c1 = static_cast<uint32_t>(product1);
      c3 = static_cast<uint32_t>(product0);
      k0 += kKeyIncrement0;
      k1 += kKeyIncrement1;
    }
    out.w[0][lane] = c0, out.w[1][lane] = c1, out.w[2][lane] = c2, out.w[3][lane] = c3;
  }
  return out;
}

#endif

// The noise of one image at one step. `tile` counts kTile elements.
struct Noise {
  uint64_t key, id;
  uint32_t step;

  Words words(int64_t tile) const { return philox(static_cast<uint32_t>(tile * kLanes), step, id, key); }

  template <typename T>
  void normals(int64_t tile, T* __restrict__ z) const;
};

// log(u) for u in (0, 1], the polynomial of Cephes' logf: u = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
inline float log_unit(float u) {
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
inline void turn(uint32_t word, float& cosine, float& sine) {
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

// r cos(theta) and r sin(theta) of two words.
inline void box_muller(uint32_t radius, uint32_t angle, float& first, float& second) {
  // The word as a float, rounded once: neither half needs rounding, their sum does. (AVX2 converts signed integers only.)
  const float high = static_cast<float>(static_cast<int32_t>(radius >> 16));
  const float low = static_cast<float>(static_cast<int32_t>(radius & 0xFFFFu));
  const float word = high * 65536.0f + low;
  const float r = std::sqrt(-2.0f * log_unit(word * 0x1p-32f + 0x1p-33f));
  float cosine, sine;
  turn(angle, cosine, sine);
  first = r * cosine;
  second = r * sine;
}

inline void box_muller(uint32_t radius, uint32_t angle, double& first, double& second) {
  const double r = std::sqrt(-2.0 * std::log(radius * 0x1p-32 + 0x1p-33));
  const double theta = 2 * kPi * (angle * 0x1p-32);
  first = r * std::cos(theta);
  second = r * std::sin(theta);
}

template <typename T>
void Noise::normals(int64_t tile, T* __restrict__ z) const {
  const Words drawn = words(tile);
  T n[4][kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    box_muller(drawn.w[0][lane], drawn.w[1][lane], n[0][lane], n[1][lane]);
    box_muller(drawn.w[2][lane], drawn.w[3][lane], n[2][lane], n[3][lane]);
  }
  for (int lane = 0; lane < kLanes; ++lane)
    for (int k = 0; k < 4; ++k) z[4 * lane + k] = n[k][lane];
}

}  // namespace purify::PURIFY_ISA
