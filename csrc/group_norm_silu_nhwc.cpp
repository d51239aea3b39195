// purify::group_norm_silu on CPUs, channels_last. Specification: purify_engine/reference/layers.py.
//
// A task is some whole groups of one image: a run of channels at every pixel. Statistics take two passes over it (no cancellation), sums
// running in double per channel; the third pass writes. Channels may come from two images side by side, as a U-Net's decoder has them.
#include <algorithm>
#include <cmath>
#include <vector>

#include "ops.h"
#include "silu.h"

namespace purify::PURIFY_ISA {

// For each of `width` channels: the sum over the pixels of term(x, channel), x lying `stride` floats apart from pixel to pixel.
template <typename T, typename Term>
void sum_pixels(double* sums, const T* x, int64_t pixels, int64_t stride, int64_t width, Term term) {
  std::fill(sums, sums + width, 0.0);
  for (int64_t pixel = 0; pixel < pixels; ++pixel, x += stride)
    for (int64_t channel = 0; channel < width; ++channel) sums[channel] += term(x[channel], channel);
}

// Spreads over a group's channels the mean of what they sum up to.
inline void average(double* means, const double* sums, int64_t width, int64_t group_width, int64_t pixels) {
  const double count = static_cast<double>(std::max<int64_t>(group_width * pixels, 1));
  for (int64_t first = 0; first < width; first += group_width) {
    double total = 0;
    for (int64_t k = 0; k < group_width; ++k) total += sums[first + k];
    std::fill(means + first, means + first + group_width, total / count);
  }
}

// to = (from - mean) * slope + offset for each of `width` channels, and its SiLU.
inline void apply_affine(float* to, const float* from, int64_t width, const float* means, const float* slopes, const float* offsets, bool silu) {
  if (!silu) {
    for (int64_t k = 0; k < width; ++k) to[k] = (from[k] - means[k]) * slopes[k] + offsets[k];
    return;
  }
  for (int64_t k = 0; k < width; ++k) {
    const float affine = (from[k] - means[k]) * slopes[k] + offsets[k];
    to[k] = affine * sigmoid(affine);
  }
}

// Some channels of one image that lie together: `width` from `x` at every pixel, `stride` floats apart; the first is channel `begin` of
// a task.
struct Run {
  const float* x;
  int64_t stride, begin, width;
};

// Where the `width` channels from `first` of one image are: in x, which has the first `own` channels, and in `skip`.
std::vector<Run> runs_of(const Norm<float>& norm, const float* skip, int64_t own, int64_t image, int64_t first, int64_t width) {
  const int64_t others = norm.channels - own, here = std::clamp<int64_t>(own - first, 0, width), pixel = image * norm.pixels;
  std::vector<Run> runs;
  if (here > 0) runs.push_back({norm.x + pixel * own + first, own, 0, here});
  if (here < width) runs.push_back({skip + pixel * others + first + here - own, others, here, width - here});
  return runs;
}

// The layer on `width` channels from `first` of one image: whole groups.
void norm_channels(float* y, const Norm<float>& norm, const float* skip, int64_t own, int64_t image, int64_t first, int64_t width) {
  const int64_t stride = norm.channels, group_width = norm.channels / norm.groups, start = image * norm.pixels * stride + first;
  const std::vector<Run> runs = runs_of(norm, skip, own, image, first, width);
  std::vector<double> sums(width), mean(width), variance(width);
  for (const Run& run : runs)
    sum_pixels(sums.data() + run.begin, run.x, norm.pixels, run.stride, run.width,
               [](float value, int64_t) { return static_cast<double>(value); });
  average(mean.data(), sums.data(), width, group_width, norm.pixels);
  for (const Run& run : runs) {
    const double* centre = mean.data() + run.begin;
    sum_pixels(sums.data() + run.begin, run.x, norm.pixels, run.stride, run.width, [=](float value, int64_t channel) {
      const double off = value - centre[channel];
      return off * off;
    });
  }
  average(variance.data(), sums.data(), width, group_width, norm.pixels);
  // On one channel the layer is affine: (x - mean as a float) * slope + offset; what the mean lost to rounding is in the offset.
  std::vector<float> affine(3 * width);
  float *means = affine.data(), *slopes = means + width, *offsets = slopes + width;
  for (int64_t k = 0; k < width; ++k) {
    const int64_t channel = first + k, place = image * norm.channels + channel;
    const double gain = norm.scale ? 1.0 + norm.scale[place] : 1.0;
    const double slope = norm.weight[channel] * gain / std::sqrt(variance[k] + norm.norm_eps);
    means[k] = static_cast<float>(mean[k]);
    slopes[k] = static_cast<float>(slope);
    const double shift = norm.shift ? norm.shift[place] : 0.0;
    offsets[k] = static_cast<float>(norm.bias[channel] * gain + shift - (mean[k] - means[k]) * slope);
  }
  for (const Run& run : runs)
    for (int64_t pixel = 0; pixel < norm.pixels; ++pixel)
      apply_affine(y + start + run.begin + pixel * stride, run.x + pixel * run.stride, run.width, means + run.begin, slopes + run.begin,
                  offsets + run.begin, norm.silu);
}

void group_norm_silu_nhwc(float* y, const Norm<float>& norm, const float* skip, int64_t own) {
  const int64_t group_width = norm.channels / norm.groups;
  const int64_t enough = 1 + norm.images * norm.channels * norm.pixels / 4096;  // elements that outweigh starting a thread
  // Channels are shared out only where there are too few images, and by cache lines.
  const int64_t parts = norm.images >= norm.threads ? 1 : std::min<int64_t>(norm.groups, norm.threads);
  const int64_t tasks = norm.images * parts;
  const int threads = static_cast<int>(std::min<int64_t>({norm.threads, tasks, enough}));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t image = task / parts, part = task % parts;
    const int64_t from = norm.groups * part / parts, to = norm.groups * (part + 1) / parts;
    norm_channels(y, norm, skip, own, image, from * group_width, (to - from) * group_width);
  }
}

}  // namespace purify::PURIFY_ISA
