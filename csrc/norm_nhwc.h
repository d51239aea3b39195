// What both directions of group_norm_silu share on channels_last images: a task is some whole groups of one image, a run of channels
// at every pixel; statistics take two passes over it (no cancellation), sums running in double per channel.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "bfloat16.h"
#include "ops.h"

namespace purify::PURIFY_ISA {

// For each of `width` channels: the sum over the pixels of term(x, channel), x lying `stride` elements apart from pixel to pixel.
template <typename S, typename Term>
void sum_pixels(double* sums, const S* x, int64_t pixels, int64_t stride, int64_t width, Term term) {
  std::vector<float> row(width);
  std::fill(sums, sums + width, 0.0);
  for (int64_t pixel = 0; pixel < pixels; ++pixel, x += stride) {
    const float* values = read(row.data(), x, width);
#pragma omp simd
    for (int64_t channel = 0; channel < width; ++channel) sums[channel] += term(values[channel], channel);
  }
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

// Some channels of one image that lie together: `width` from `x` at every pixel, `stride` elements apart; the first is channel `begin`
// of a task.
template <typename S>
struct Run {
  const S* x;
  int64_t stride, begin, width;
};

// Of each of a task's channels: the mean and the variance of its group, and the layer, which on one channel is affine: (x - the mean as
// a float) * slope + offset; what the mean lost to rounding is in the offset.
struct Channels {
  std::vector<double> mean, variance;
  std::vector<float> means, slopes, offsets;
};

// Of the `width` channels from `first` of one image, which lie in `runs`.
template <typename S>
Channels channels_of(const Norm<float, S>& norm, const std::vector<Run<S>>& runs, int64_t image, int64_t first, int64_t width) {
  const int64_t group_width = norm.channels / norm.groups;
  std::vector<double> sums(width);
  Channels of{std::vector<double>(width), std::vector<double>(width), std::vector<float>(width), std::vector<float>(width),
              std::vector<float>(width)};
  for (const Run<S>& run : runs)
    sum_pixels(sums.data() + run.begin, run.x, norm.pixels, run.stride, run.width,
               [](float value, int64_t) { return static_cast<double>(value); });
  average(of.mean.data(), sums.data(), width, group_width, norm.pixels);
  for (const Run<S>& run : runs) {
    const double* centre = of.mean.data() + run.begin;
    sum_pixels(sums.data() + run.begin, run.x, norm.pixels, run.stride, run.width, [=](float value, int64_t channel) {
      const double off = value - centre[channel];
      return off * off;
    });
  }
  average(of.variance.data(), sums.data(), width, group_width, norm.pixels);
  for (int64_t k = 0; k < width; ++k) {
    const int64_t channel = first + k, place = image * norm.channels + channel;
    const double gain = norm.scale ? 1.0 + norm.scale[place] : 1.0;
    const double slope = norm.weight[channel] * gain / std::sqrt(of.variance[k] + norm.norm_eps);
    of.means[k] = static_cast<float>(of.mean[k]);
    of.slopes[k] = static_cast<float>(slope);
    const double shift = norm.shift ? norm.shift[place] : 0.0;
    of.offsets[k] = static_cast<float>(norm.bias[channel] * gain + shift - (of.mean[k] - of.means[k]) * slope);
  }
  return of;
}

// Calls body(image, first channel, channels) for all tasks. Channels are shared out only where there are too few images, and by cache
// lines.
template <typename S, typename Body>
void for_each_task(const Norm<float, S>& norm, Body body) {
  const int64_t group_width = norm.channels / norm.groups;
  const int64_t enough = 1 + norm.images * norm.channels * norm.pixels / 4096;  // elements that outweigh starting a thread
  const int64_t parts = norm.images >= norm.threads ? 1 : std::min<int64_t>(norm.groups, norm.threads);
  const int64_t tasks = norm.images * parts;
  const int threads = static_cast<int>(std::min<int64_t>({norm.threads, tasks, enough}));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t part = task % parts, from = norm.groups * part / parts, to = norm.groups * (part + 1) / parts;
    body(task / parts, from * group_width, (to - from) * group_width);
  }
}

}  // namespace purify::PURIFY_ISA
