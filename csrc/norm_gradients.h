// The gradients of group_norm_silu to what belongs to channels, from sums that any layout's kernel writes.
#pragma once

#include "ops.h"

namespace purify::PURIFY_ISA {

// Over the pixels of one channel of one image: the sum of the gradient through SiLU, and of its product with the normed input.
template <typename T>
struct ChannelSums {
  Wide<T> grad, grad_normed;
};

template <typename T, typename S>
Wide<T> gain_of(const Norm<T, S>& norm, int64_t image, int64_t channel) {
  return norm.scale ? Wide<T>(1) + norm.scale[image * norm.channels + channel] : Wide<T>(1);
}

// `sums` are those of every channel of every image. In the order of the images, whatever thread computed them.
template <typename T, typename S>
void write_channel_gradients(const NormGrads<T, S>& grads, const ChannelSums<T>* sums, const Norm<T, S>& norm) {
  const int64_t channels = norm.channels;
  for (int64_t channel = 0; channel < channels; ++channel) {
    Wide<T> weight = 0, bias = 0;
    for (int64_t image = 0; image < norm.images; ++image) {
      const ChannelSums<T>& of = sums[image * channels + channel];
      const Wide<T> gain = gain_of(norm, image, channel);
      weight += gain * of.grad_normed;
      bias += gain * of.grad;
      const Wide<T> along_scale = norm.weight[channel] * of.grad_normed + norm.bias[channel] * of.grad;
      if (grads.scale) grads.scale[image * channels + channel] = static_cast<T>(along_scale);
      if (grads.shift) grads.shift[image * channels + channel] = static_cast<T>(of.grad);
    }
    grads.weight[channel] = static_cast<T>(weight);
    grads.bias[channel] = static_cast<T>(bias);
  }
}

}  // namespace purify::PURIFY_ISA
