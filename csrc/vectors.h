// Vectors of floats as wide as the instruction set that a translation unit is compiled for. Arithmetic on them is the compiler's own.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"

namespace purify::PURIFY_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));

#define PURIFY_INLINE inline __attribute__((always_inline))

PURIFY_INLINE Vector load(const float* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

PURIFY_INLINE void store(float* to, Vector value) { std::memcpy(to, &value, sizeof value); }

// The first `count` lanes; zeros after them.
PURIFY_INLINE Vector load(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Vector value = {};
  for (int64_t lane = 0; lane < count; ++lane) value[lane] = from[lane];
  return value;
}

PURIFY_INLINE void store(float* to, Vector value, int64_t count) {
  if (count >= kLanes) return store(to, value);
  for (int64_t lane = 0; lane < count; ++lane) to[lane] = value[lane];
}

// Zero where `value` is negative; what is no number stays so.
PURIFY_INLINE Vector relu(Vector value) { return 0.0f > value ? Vector{} : value; }

constexpr int64_t rounded_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

}  // namespace purify::PURIFY_ISA
