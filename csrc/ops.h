// The ops of the C++ room. Each is built once for every instruction set, in a namespace of that name; module.cpp picks one at run time.
#pragma once

#include <cstdint>

#include "isa.h"

namespace purify {

// What sums of T run in, to be rounded to T once.
template <typename T>
struct WiderThan {
  using type = double;
};
template <>
struct WiderThan<double> {
  using type = long double;
};
template <typename T>
using Wide = typename WiderThan<T>::type;

// The images of a batch and the noise they get: one id an image, `numel` elements each, in NCHW order.
struct Batch {
  int64_t images, numel;
  const int64_t* key;
  const int64_t* step;
  const int64_t* ids;
  int threads;
};

// x_j = a x_i + b eps + d grad + c z.
struct Row {
  double a, b, d, c;
};

// The arguments of group_norm_silu. `scale` and `shift` are null where they are not given.
template <typename T>
struct Norm {
  const T *x, *weight, *bias, *scale, *shift;
  int64_t images, channels, pixels, groups;
  double norm_eps;
  bool silu;
  int threads;
};

// Where its gradients go. `scale` and `shift` may be null.
template <typename T>
struct NormGrads {
  T *x, *weight, *bias, *scale, *shift;
};

#define PURIFY_DECLARE_OPS(isa)                                                                                      \
  namespace isa {                                                                                                    \
  void philox_block(uint32_t* words, const uint32_t* counter, const uint32_t* key);                                  \
  void philox_words(int64_t* out, const Batch& batch);                                                               \
  template <typename T>                                                                                              \
  void philox_normal(T* out, const Batch& batch);                                                                    \
  template <typename T>                                                                                              \
  void q_sample(T* x_t, const T* x_start, const double* marginal, const Batch& batch);                               \
  template <typename T>                                                                                              \
  void guided_step(T* x_next, const T* x_t, const T* eps, const T* grad, Row row, const Batch& batch);               \
  template <typename T>                                                                                              \
  void group_norm_silu(T* y, const Norm<T>& norm);                                                                   \
  template <typename T>                                                                                              \
  void group_norm_silu_backward(const NormGrads<T>& grads, const T* grad_out, const Norm<T>& norm);                  \
  }

PURIFY_DECLARE_OPS(portable)
#ifdef PURIFY_HAS_AVX2
PURIFY_DECLARE_OPS(avx2)
#endif

}  // namespace purify
