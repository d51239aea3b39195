// purify::group_norm_silu on CPUs, channels_last. Specification: purify_engine/reference/layers.py.
//
// Two passes for the statistics (norm_nhwc.h), the third writes. Channels may come from two images side by side, as a U-Net's decoder
// has them.
#include "norm_nhwc.h"
#include "silu.h"

namespace purify::PURIFY_ISA {

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

// Where the `width` channels from `first` of one image are: in x, which has the first `own` channels, and in `skip`.
template <typename S>
std::vector<Run<S>> runs_of(const Norm<float, S>& norm, const S* skip, int64_t own, int64_t image, int64_t first, int64_t width) {
  const int64_t others = norm.channels - own, here = std::clamp<int64_t>(own - first, 0, width), pixel = image * norm.pixels;
  std::vector<Run<S>> runs;
  if (here > 0) runs.push_back({norm.x + pixel * own + first, own, 0, here});
  if (here < width) runs.push_back({skip + pixel * others + first + here - own, others, here, width - here});
  return runs;
}

template <typename S>
void group_norm_silu_nhwc(S* y, const Norm<float, S>& norm, const S* skip, int64_t own) {
  const int64_t stride = norm.channels;
  for_each_task(norm, [=](int64_t image, int64_t first, int64_t width) {
    const std::vector<Run<S>> runs = runs_of(norm, skip, own, image, first, width);
    const Channels of = channels_of(norm, runs, image, first, width);
    S* to = y + image * norm.pixels * stride + first;
    std::vector<float> in(width), out(width);
    for (const Run<S>& run : runs)
      for (int64_t pixel = 0; pixel < norm.pixels; ++pixel) {
        S* there = to + run.begin + pixel * stride;
        float* row = row_of(out.data(), there);
        apply_affine(row, read(in.data(), run.x + pixel * run.stride, run.width), run.width, of.means.data() + run.begin,
                     of.slopes.data() + run.begin, of.offsets.data() + run.begin, norm.silu);
        write(there, row, run.width);
      }
  });
}

template void group_norm_silu_nhwc(float*, const Norm<float>&, const float*, int64_t);
template void group_norm_silu_nhwc(BFloat16*, const Norm<float, BFloat16>&, const BFloat16*, int64_t);

}  // namespace purify::PURIFY_ISA
