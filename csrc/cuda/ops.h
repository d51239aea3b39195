// The ops of the CUDA extension, as module.cpp calls them: each launches its kernels on `stream` and returns at once, or throws with
// the name of the op. Every pointer but `op` is the device's.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace purify::cuda {

enum class Dtype : int { float32, float16, bfloat16, float64 };

// Images [B, C, H, W], NCHW or channels_last. Null where there are none.
struct Images {
  void* data;
  Dtype dtype;
  bool channels_last;
};

// Numbers [C] or [B, C], in the dtype of the images, or in float32 beside narrower ones; `stride` leads from one image to the
// next. Null where there are none.
struct Channels {
  void* data;
  Dtype dtype;
  int64_t stride;
};

// The images of a batch and the noise they get: one id an image. An image has fewer than 2^30 elements. `key_stride` leads from the key
// of one image to that of the next; 0 where all share one.
struct Batch {
  int64_t images;
  int channels, pixels;
  const int64_t *key, *step, *ids;
  int64_t key_stride;
};

// The arguments of group_norm_silu. A group has fewer than 2^30 elements. `aligned`: all pointers to images are multiples of 16.
struct Norm {
  Images x;
  Channels weight, bias, scale, shift;
  int64_t images;
  int channels, pixels, groups;
  double norm_eps;
  bool silu, aligned;
};

// Where its gradients go.
struct NormGrads {
  void* x;
  Channels weight, bias, scale, shift;
};

// How many bytes the kernels of group_norm_silu leave for one another, in the forward pass and in the backward one; 0 where one
// kernel does it all.
int64_t group_norm_silu_workspace(const Norm& norm);
int64_t group_norm_silu_backward_workspace(const Norm& norm);

void philox_block(cudaStream_t stream, uint32_t* words, const uint32_t* counter, const uint32_t* key);
void philox(cudaStream_t stream, int64_t* out, const Batch& batch);
void philox_normal(cudaStream_t stream, void* out, Dtype dtype, const Batch& batch);
void q_sample(cudaStream_t stream, Images x_t, Images x_net, Images x_start, const double* marginal, const Batch& batch);
void guided_step(cudaStream_t stream, Images x_next, Images x_net, Images x_t, Images eps, Images grad, const double* rows,
                 int64_t num_rows, const Batch& batch);
void group_norm_silu(cudaStream_t stream, void* y, void* workspace, const Norm& norm);
void group_norm_silu_backward(cudaStream_t stream, const NormGrads& grads, void* workspace, const void* grad_out,
                              const Norm& norm);

// Throws where a launch went wrong.
void check(const char* op, cudaError_t launched);

}  // namespace purify::cuda
