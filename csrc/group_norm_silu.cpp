// purify::group_norm_silu and its gradient on CPUs, NCHW. Specification: purify_engine/reference/layers.py.
//
// A group of an image is contiguous and stays in cache, so its statistics are taken in two passes over it (no cancellation), and the
// third writes. Sums run wider than the data: they cost less than the exponential of SiLU.
#include <algorithm>
#include <cmath>
#include <vector>

#include "norm_gradients.h"
#include "ops.h"
#include "silu.h"

namespace purify::PURIFY_ISA {

constexpr int kPartial = 16;  // partial sums, so that a sum is a few vectors wide

// The sum over i < n of term(i), in W.
template <typename W, typename Term>
W sum(int64_t n, Term term) {
  W partial[kPartial] = {};
  int64_t i = 0;
  for (; i + kPartial <= n; i += kPartial)
    for (int lane = 0; lane < kPartial; ++lane) partial[lane] += term(i + lane);
  W total = 0;
  for (; i < n; ++i) total += term(i);
  for (int lane = 0; lane < kPartial; ++lane) total += partial[lane];
  return total;
}

// Mean and reciprocal standard deviation of a group of n elements.
template <typename T>
struct Moments {
  Wide<T> mean, rstd;
};

template <typename T>
Moments<T> moments(const T* x, int64_t n, double norm_eps) {
  using W = Wide<T>;
  const W count = static_cast<W>(std::max<int64_t>(n, 1));  // of nothing, the mean is 0
  const W mean = sum<W>(n, [=](int64_t i) { return x[i]; }) / count;
  const W variance = sum<W>(n, [=](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / count;
  return {mean, 1 / std::sqrt(variance + norm_eps)};
}

template <typename T>
T shift_of(const Norm<T>& norm, int64_t image, int64_t channel) {
  return norm.shift ? norm.shift[image * norm.channels + channel] : T(0);
}

// The layer on one channel of one image is affine: (x - centre) * slope + offset: `centre` is the mean as a T, what it lost to rounding
// is in `offset`.
template <typename T>
struct ChannelAffine {
  T centre, slope, offset;

  T operator()(T x) const { return (x - centre) * slope + offset; }
};

template <typename T>
ChannelAffine<T> affine_of(const Moments<T>& m, const Norm<T>& norm, int64_t image, int64_t channel) {
  const Wide<T> gain = gain_of(norm, image, channel);
  const Wide<T> slope = m.rstd * norm.weight[channel] * gain;
  const T centre = static_cast<T>(m.mean);
  const Wide<T> offset = norm.bias[channel] * gain + shift_of(norm, image, channel) - (m.mean - centre) * slope;
  return {centre, static_cast<T>(slope), static_cast<T>(offset)};
}

// Calls body(image, group) for all of them.
template <typename T, typename Body>
void for_each_group(const Norm<T>& norm, Body body) {
  const int64_t groups = norm.images * norm.groups;
  const int64_t enough = 1 + norm.images * norm.channels * norm.pixels / 4096;  // elements that outweigh starting a thread
  const int threads = static_cast<int>(std::min<int64_t>({norm.threads, groups, enough}));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < groups; ++i) body(i / norm.groups, i % norm.groups);
}

template <typename T>
void forward_channel(T* y, const T* x, ChannelAffine<T> map, int64_t pixels, bool silu) {
  if (!silu) {
    for (int64_t i = 0; i < pixels; ++i) y[i] = map(x[i]);
    return;
  }
  for (int64_t i = 0; i < pixels; ++i) {
    const T affine = map(x[i]);
    y[i] = affine * sigmoid(affine);
  }
}

// The gradient through SiLU, to what SiLU is applied to.
template <typename T>
void through_silu(T* grad, const T* grad_out, const T* x, ChannelAffine<T> map, int64_t pixels, bool silu) {
  if (!silu) {
    for (int64_t i = 0; i < pixels; ++i) grad[i] = grad_out[i];
    return;
  }
  for (int64_t i = 0; i < pixels; ++i) {
    const T affine = map(x[i]), gate = sigmoid(affine);
    grad[i] = grad_out[i] * gate * (1 + affine * (1 - gate));
  }
}

// Writes grad_x of one group and the sums of its channels. In between, grad_x holds the gradient through SiLU. What is left of it after
// the two means are taken away is rounded once: in a group of one element, whose gradient is 0, they cancel to 0.
template <typename T>
void backward_group(T* grad_x, ChannelSums<T>* sums, const T* grad_out, const Norm<T>& norm, int64_t image, int64_t group) {
  using W = Wide<T>;
  const int64_t width = norm.channels / norm.groups, pixels = norm.pixels, first = image * norm.channels + group * width;
  const Moments<T> m = moments(norm.x + first * pixels, width * pixels, norm.norm_eps);
  const auto slope_of = [&](int64_t k) {  // as a T: its product with another is exact in W, with a fused multiply-add and without
    return static_cast<T>(norm.weight[group * width + k] * gain_of(norm, image, group * width + k));
  };
  W level = 0, tilt = 0;  // the means over the group of the gradient to the normed input, and of its product with that
  for (int64_t k = 0; k < width; ++k) {
    const int64_t at = (first + k) * pixels;
    const T *x = norm.x + at, *grad = grad_x + at;
    through_silu(grad_x + at, grad_out + at, x, affine_of(m, norm, image, group * width + k), pixels, norm.silu);
    ChannelSums<T>& of = sums[first + k];
    of.grad = sum<W>(pixels, [=](int64_t i) { return grad[i]; });
    of.grad_normed = m.rstd * sum<W>(pixels, [=](int64_t i) { return grad[i] * (x[i] - m.mean); });
    level += slope_of(k) * of.grad;
    tilt += slope_of(k) * of.grad_normed;
  }
  const W count = static_cast<W>(std::max<int64_t>(width * pixels, 1));
  level /= count;
  tilt *= m.rstd / count;
  for (int64_t k = 0; k < width; ++k) {
    const T* x = norm.x + (first + k) * pixels;
    T* grad = grad_x + (first + k) * pixels;
    const W slope = slope_of(k);
    for (int64_t i = 0; i < pixels; ++i) grad[i] = static_cast<T>(m.rstd * (slope * grad[i] - level - (x[i] - m.mean) * tilt));
  }
}

template <typename T>
void group_norm_silu(T* y, const Norm<T>& norm) {
  const int64_t width = norm.channels / norm.groups, pixels = norm.pixels;
  for_each_group(norm, [=](int64_t image, int64_t group) {
    const int64_t first = image * norm.channels + group * width;
    const Moments<T> m = moments(norm.x + first * pixels, width * pixels, norm.norm_eps);
    for (int64_t k = 0; k < width; ++k) {
      const int64_t at = (first + k) * pixels;
      forward_channel(y + at, norm.x + at, affine_of(m, norm, image, group * width + k), pixels, norm.silu);
    }
  });
}

template <typename T>
void group_norm_silu_backward(const NormGrads<T>& grads, const T* grad_out, const Norm<T>& norm) {
  std::vector<ChannelSums<T>> storage(norm.images * norm.channels);
  ChannelSums<T>* sums = storage.data();
  for_each_group(norm, [=](int64_t image, int64_t group) { backward_group(grads.x, sums, grad_out, norm, image, group); });
  write_channel_gradients(grads, sums, norm);
}

template void group_norm_silu(float*, const Norm<float>&);
template void group_norm_silu(double*, const Norm<double>&);
template void group_norm_silu_backward(const NormGrads<float>&, const float*, const Norm<float>&);
template void group_norm_silu_backward(const NormGrads<double>&, const double*, const Norm<double>&);

}  // namespace purify::PURIFY_ISA
