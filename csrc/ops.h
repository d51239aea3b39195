// The ops of the C++ extension. Each is built once for every instruction set, in a namespace of that name; module.cpp picks one at run time.
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

// The images of a batch and the noise they get: one id an image, `numel` elements each, in NCHW order. `key_stride` leads from the key
// of one image to that of the next; 0 where all share one.
struct Batch {
  int64_t images, numel;
  const int64_t* key;
  int64_t key_stride;
  const int64_t* step;
  const int64_t* ids;
  int threads;
};

// x_j = a x_i + b eps + d grad + c z.
struct Row {
  double a, b, d, c;
};

// The bits of a bfloat16, as a type of its own; bfloat16.h computes with it.
enum class BFloat16 : uint16_t {};

// The arguments of group_norm_silu; images are stored in S. `scale` and `shift` are null where they are not given.
template <typename T, typename S = T>
struct Norm {
  const S* x;
  const T *weight, *bias, *scale, *shift;
  int64_t images, channels, pixels, groups;
  double norm_eps;
  bool silu;
  int threads;
};

// Where its gradients go. `scale` and `shift` may be null.
template <typename T, typename S = T>
struct NormGrads {
  S* x;
  T *weight, *bias, *scale, *shift;
};

// 3x3 filters: the nine taps of one lie together; `flip` turns them round, for the gradient to the input.
struct Filters {
  const float* weight;
  int64_t channels, out_channels, stride, out_stride;
  bool flip;
  int threads;
};

// relu(slope x + offset), slope and offset one a channel; slope and offset are null where it is of x itself. With `before` the
// convolution reads its input through the ReLU. With an `x` the convolution's result is a gradient that passes back through the ReLU:
// zero where slope x + offset is not positive, elsewhere times the slope. With neither there is no ReLU.
struct Relu {
  const float *x, *slope, *offset;
  bool before;
};

// The arguments of conv3x3_winograd, images channels_last. `height` and `width` are the result's; `bias`, `temb` and `residual` may be
// null. `block` tiles are worked on at a time; `kept` says that `packed` are transformed filters.
struct Convolution {
  float* y;
  const float *x, *packed, *bias, *temb, *residual;
  Relu relu;
  int64_t images, height, width, channels, out_channels, temb_stride, block;
  float gain;
  bool upsample, kept;
  int threads;
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

// Those for which wider vectors pay. `results` is 2 or 4, of F(2x2, 3x3) and F(4x4, 3x3); `nhwc` is channels_last,
// where the images may be two side by side: x has the first `own` channels, `skip` the others. S is float or BFloat16.
#define PURIFY_DECLARE_WIDE_OPS(isa)                                                                                 \
  namespace isa {                                                                                                    \
  template <typename S>                                                                                              \
  void group_norm_silu_nhwc(S* y, const Norm<float, S>& norm, const S* skip, int64_t own);                           \
  template <typename S>                                                                                              \
  void group_norm_silu_nhwc_backward(const NormGrads<float, S>& grads, const S* grad_out, const Norm<float, S>& norm); \
  int64_t conv3x3_winograd_packed_size(int kept, int64_t channels, int64_t out_channels);                            \
  void conv3x3_winograd_pack(float* packed, int kept, const Filters& filters);                                       \
  void conv3x3_winograd(int results, const Convolution& conv);                                                       \
  }

PURIFY_DECLARE_OPS(portable)
PURIFY_DECLARE_WIDE_OPS(portable)
#ifdef PURIFY_X86
PURIFY_DECLARE_OPS(avx2)
PURIFY_DECLARE_WIDE_OPS(avx2)
PURIFY_DECLARE_WIDE_OPS(avx512)
#endif

}  // namespace purify
