// Images in bfloat16 are computed on in float, a pixel's channels at a time: `read` widens them into a row, `write` rounds a row to them.
// Where images are in float already, they are read where they are.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops.h"
#include "vectors.h"

namespace purify::PURIFY_ISA {

using Halves = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));
using Words = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));

// To the nearest bfloat16, to the even one of two as near. What is no number stays so.
inline BFloat16 narrowed(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  return static_cast<BFloat16>((value != value ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

PURIFY_INLINE Halves narrowed(Vector value) {
  const Words bits = bit_cast<Words>(value);
  const Words rounded = value != value ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  return __builtin_convertvector(rounded >> 16, Halves);
}

inline const float* read(float*, const float* from, int64_t) { return from; }

inline const float* read(float* row, const BFloat16* from, int64_t width) {
  int64_t k = 0;
  for (; k + kLanes <= width; k += kLanes) {
    Halves bits;
    std::memcpy(&bits, from + k, sizeof bits);
    store(row + k, bit_cast<Vector>(__builtin_convertvector(bits, Words) << 16));
  }
  for (; k < width; ++k) row[k] = bit_cast<float>(static_cast<uint32_t>(from[k]) << 16);
  return row;
}

// Where the row of a pixel is to be computed, that `write` then brings to `to`.
inline float* row_of(float*, float* to) { return to; }

inline float* row_of(float* row, BFloat16*) { return row; }

inline void write(float*, const float*, int64_t) {}

inline void write(BFloat16* to, const float* row, int64_t width) {
  int64_t k = 0;
  for (; k + kLanes <= width; k += kLanes) {
    const Halves bits = narrowed(load(row + k));
    std::memcpy(to + k, &bits, sizeof bits);
  }
  for (; k < width; ++k) to[k] = narrowed(row[k]);
}

}  // namespace purify::PURIFY_ISA
