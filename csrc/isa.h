// The instruction set that a translation unit is compiled for. `<op>_avx2.cpp` includes `<op>.cpp` once more under -mavx2 -mfma
// (setup.py), in a namespace of its own, so that no inline function of one build can stand in for the other's at link time.
#pragma once

#ifndef PURIFY_ISA
#define PURIFY_ISA portable
#endif

// What GPUs run as well: nvcc compiles it for both.
#ifdef __CUDACC__
#define PURIFY_BOTH __host__ __device__
#else
#define PURIFY_BOTH
#endif

namespace purify::PURIFY_ISA {

// The bits of `value` as another type (std::bit_cast, which C++17 lacks).
template <typename To, typename From>
PURIFY_BOTH inline To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To out;
  __builtin_memcpy(&out, &value, sizeof out);
  return out;
}

}  // namespace purify::PURIFY_ISA
