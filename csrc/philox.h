// Philox 4x32-10 (Salmon et al. 2011) and Box-Muller. Specification: purify_engine/reference/philox.py.
//
// Written one lane at a time, in loops of kLanes that the compiler turns into vectors: no branches, no library calls in float. Only the
// rounds of Philox are spelt out for AVX2, whose 32 x 32 -> 64 bit product compilers do not find. Every tile takes the same path, the
// last one too, so that a normal never depends on where an image ends.
#pragma once

#include <cstdint>

#include "draw.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace purify::PURIFY_ISA {

constexpr int kLanes = 8;            // counters a tile: one vector of 32-bit words
constexpr int kTile = 4 * kLanes;    // elements a tile

// The four words of kLanes counters: word k of counter lane `j` is w[k][j], and serves element 4 * j + k of the tile.
struct Words {
  uint32_t w[4][kLanes];
};

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
    const Counter counter{first + lane, step, static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32)};
    const Counter drawn = philox_block(counter, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
    out.w[0][lane] = drawn.c0, out.w[1][lane] = drawn.c1, out.w[2][lane] = drawn.c2, out.w[3][lane] = drawn.c3;
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
