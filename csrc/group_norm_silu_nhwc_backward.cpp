// The gradient of purify::group_norm_silu on CPUs, channels_last. Specification: purify_engine/reference/layers.py.
//
// Two passes for the statistics (norm_nhwc.h), one that takes the gradient through SiLU and sums it up, one that writes.
#include "norm_gradients.h"
#include "norm_nhwc.h"
#include "silu.h"

namespace purify::PURIFY_ISA {

// Channels of one task: what the gradient of each pixel is multiplied by, and the means over a group that are taken away from it.
struct Slopes {
  std::vector<double> rstd, slope, level, tilt;
};

// Of one pixel, its `width` channels: the gradient through SiLU.
inline void through_silu(float* through, const float* grad_out, const float* x, const Channels& of, int64_t width, bool silu) {
  const float *means = of.means.data(), *slopes = of.slopes.data(), *offsets = of.offsets.data();
  if (!silu) {
    std::copy(grad_out, grad_out + width, through);
    return;
  }
#pragma omp simd
  for (int64_t k = 0; k < width; ++k) {
    const float affine = (x[k] - means[k]) * slopes[k] + offsets[k], gate = sigmoid(affine);
    through[k] = grad_out[k] * gate * (1 + affine * (1 - gate));
  }
}

// Adds a pixel's gradients to `sums`, and to `centred` times the centred input.
inline void add_up(double* sums, double* centred, const float* through, const float* x, const double* mean, int64_t width) {
#pragma omp simd
  for (int64_t k = 0; k < width; ++k) {
    sums[k] += through[k];
    centred[k] += through[k] * (x[k] - mean[k]);
  }
}

// From a task's sums, its channels from `first`: what the last pass needs, and in `sums` what the gradients of channels need.
template <typename S>
Slopes slopes_of(ChannelSums<float>* sums, const Norm<float, S>& norm, const Channels& of, int64_t image, int64_t first, int64_t width) {
  const int64_t group_width = norm.channels / norm.groups;
  Slopes found{std::vector<double>(width), std::vector<double>(width), std::vector<double>(width), std::vector<double>(width)};
  std::vector<double> levels(width), tilts(width);
  for (int64_t k = 0; k < width; ++k) {
    found.rstd[k] = 1 / std::sqrt(of.variance[k] + norm.norm_eps);
    // as a float: its product with another is exact in double, with a fused multiply-add and without
    found.slope[k] = static_cast<float>(norm.weight[first + k] * gain_of(norm, image, first + k));
    sums[k].grad_normed *= found.rstd[k];
    levels[k] = found.slope[k] * sums[k].grad;
    tilts[k] = found.slope[k] * sums[k].grad_normed * found.rstd[k];
  }
  average(found.level.data(), levels.data(), width, group_width, norm.pixels);
  average(found.tilt.data(), tilts.data(), width, group_width, norm.pixels);
  return found;
}

// The gradient to a pixel. What is left after the two means are taken away is rounded once: in a group of one element they cancel to 0.
inline void to_input(float* grad_x, const float* through, const float* x, const double* mean, const Slopes& by, int64_t width) {
  const double *rstd = by.rstd.data(), *slope = by.slope.data(), *level = by.level.data(), *tilt = by.tilt.data();
#pragma omp simd
  for (int64_t k = 0; k < width; ++k) {
    const double left = slope[k] * through[k] - level[k] - (x[k] - mean[k]) * tilt[k];
    grad_x[k] = static_cast<float>(rstd[k] * left);
  }
}

template <typename S>
void group_norm_silu_nhwc_backward(const NormGrads<float, S>& grads, const S* grad_out, const Norm<float, S>& norm) {
  const int64_t channels = norm.channels;
  std::vector<ChannelSums<float>> storage(norm.images * channels);
  ChannelSums<float>* all = storage.data();
  for_each_task(norm, [=](int64_t image, int64_t first, int64_t width) {
    const int64_t start = image * norm.pixels * channels + first;
    const Channels of = channels_of(norm, {{norm.x + start, channels, 0, width}}, image, first, width);
    const double* mean = of.mean.data();
    std::vector<float> through(norm.pixels * width), rows(2 * width);
    std::vector<double> sums(width), centred(width);
    float *in = rows.data(), *out = in + width;
    for (int64_t pixel = 0; pixel < norm.pixels; ++pixel) {
      const int64_t at = start + pixel * channels;
      float* here = &through[pixel * width];
      const float* x = read(in, norm.x + at, width);
      through_silu(here, read(out, grad_out + at, width), x, of, width, norm.silu);
      add_up(sums.data(), centred.data(), here, x, mean, width);
    }
    ChannelSums<float>* of_channels = all + image * channels + first;
    for (int64_t k = 0; k < width; ++k) of_channels[k] = {sums[k], centred[k]};
    const Slopes by = slopes_of(of_channels, norm, of, image, first, width);
    for (int64_t pixel = 0; pixel < norm.pixels; ++pixel) {
      const int64_t at = start + pixel * channels;
      float* row = row_of(out, grads.x + at);
      to_input(row, &through[pixel * width], read(in, norm.x + at, width), mean, by, width);
      write(grads.x + at, row, width);
    }
  });
  write_channel_gradients(grads, all, norm);
}

template void group_norm_silu_nhwc_backward(const NormGrads<float>&, const float*, const Norm<float>&);
template void group_norm_silu_nhwc_backward(const NormGrads<float, BFloat16>&, const BFloat16*, const Norm<float, BFloat16>&);

}  // namespace purify::PURIFY_ISA
