// purify::q_sample on CPUs. Specification: purify_engine/reference/process.py.
#include "images.h"

namespace purify::PURIFY_ISA {

template <typename T>
void q_sample(T* out, const T* x_start, const double* marginal, const Batch& batch) {
  const Wide<T> signal = marginal[0], sigma = marginal[1];
  for_each_tile(batch, [=](Noise noise, int64_t tile, int64_t start, int count) {
    T z[kTile];
    noise.normals(tile, z);
    for (int i = 0; i < count; ++i) out[start + i] = static_cast<T>(signal * x_start[start + i] + sigma * z[i]);
  });
}

template void q_sample(float*, const float*, const double*, const Batch&);
template void q_sample(double*, const double*, const double*, const Batch&);

}  // namespace purify::PURIFY_ISA
