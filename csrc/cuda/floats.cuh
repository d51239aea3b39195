// Element types and what reads and writes several of them at once. Arithmetic runs in float, or in double for float64.
#pragma once

#define PURIFY_ISA cuda

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "../draw.h"
#include "ops.h"

namespace purify::cuda {

using Half = __half;
using BFloat16 = __nv_bfloat16;

// A T as it is computed with, element by element.
template <typename T>
using Value = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
constexpr Dtype kDtype = std::is_same_v<T, double>     ? Dtype::float64
                         : std::is_same_v<T, Half>     ? Dtype::float16
                         : std::is_same_v<T, BFloat16> ? Dtype::bfloat16
                                                       : Dtype::float32;

__device__ inline int64_t widened(int64_t value) { return value; }
__device__ inline float widened(float value) { return value; }
__device__ inline double widened(double value) { return value; }
__device__ inline float widened(Half value) { return __half2float(value); }
__device__ inline float widened(BFloat16 value) { return __bfloat162float(value); }

// `value` as a T, rounded to the nearest. (PyTorch, too, goes from double to 16 bits by way of float.)
template <typename T, typename V>
__device__ inline T narrowed(V value) {
  if constexpr (std::is_same_v<T, Half>) return __float2half_rn(static_cast<float>(value));
  else if constexpr (std::is_same_v<T, BFloat16>) return __float2bfloat16_rn(static_cast<float>(value));
  else return static_cast<T>(value);
}

// Twice the precision of double, as the sum of two (Dekker 1971): what sums of float64 run in, since GPUs have no long double.
// Relies on every operation being rounded on its own (setup.py: -fmad=false).
struct Twofold {
  double high, low;

  Twofold() = default;
  __device__ Twofold(double high, double low = 0) : high(high), low(low) {}
  __device__ explicit operator double() const { return high; }
  __device__ explicit operator float() const { return static_cast<float>(high); }

  // a + b, and what rounding left out of it.
  __device__ static Twofold exact_sum(double a, double b) {
    const double sum = a + b, of_b = sum - a;
    return {sum, (a - (sum - of_b)) + (b - of_b)};
  }
  __device__ static Twofold exact_product(double a, double b) {
    const double product = a * b;
    return {product, std::fma(a, b, -product)};
  }
  // Of a sum or product that is infinite nothing was left out.
  __device__ Twofold plus(double rest) const {
    const double more = low + rest;
    return more == more ? exact_sum(high, more) : Twofold(high);
  }
};

__device__ inline Twofold operator+(Twofold a, Twofold b) { return Twofold::exact_sum(a.high, b.high).plus(a.low + b.low); }
__device__ inline Twofold operator-(Twofold a, Twofold b) { return a + Twofold(-b.high, -b.low); }
__device__ inline Twofold operator*(Twofold a, Twofold b) {
  return Twofold::exact_product(a.high, b.high).plus(a.high * b.low + a.low * b.high);
}
__device__ inline Twofold operator/(Twofold a, Twofold b) {
  const double first = a.high / b.high;
  return Twofold(first).plus((a - Twofold(first) * b).high / b.high);
}
__device__ inline Twofold square_root(Twofold a) {
  const double first = std::sqrt(a.high);
  return Twofold(first).plus((a - Twofold::exact_product(first, first)).high / (2 * first));
}
__device__ inline float square_root(float a) { return std::sqrt(a); }
__device__ inline double square_root(double a) { return std::sqrt(a); }

// What sums of T run in, to be rounded to T once.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, Twofold, std::conditional_t<std::is_same_v<T, float>, double, float>>;

// N elements that are read and written as one, in accesses of 16 bytes at most.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T v[N];
};

template <int N, typename T>
__device__ inline Pack<T, N> pack_at(const T* place) {
  return *reinterpret_cast<const Pack<T, N>*>(place);
}

template <int N, typename T>
__device__ inline void put(T* place, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(place) = pack;
}

// Calls body(T{}) with the element type that `dtype` names, where `body` can run.
#pragma nv_exec_check_disable
template <typename Body>
PURIFY_BOTH void with_type(Dtype dtype, Body body) {
  switch (dtype) {
    case Dtype::float32: return body(float{});
    case Dtype::float16: return body(Half{});
    case Dtype::bfloat16: return body(BFloat16{});
    case Dtype::float64: return body(double{});
  }
}

inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Runs a kernel of the op on the stream.
template <typename... Parameters, typename... Arguments>
void launch(const char* op, cudaStream_t stream, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
            Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.stream = stream;
  const cudaError_t launched = cudaLaunchKernelEx(&config, kernel, arguments...);
  const cudaError_t last = cudaGetLastError();  // read in any case: an error left behind would be blamed on the next launch
  check(op, launched != cudaSuccess ? launched : last);
}

}  // namespace purify::cuda
