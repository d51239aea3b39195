// purify::guided_step on CPUs. Specification: purify_engine/reference/process.py.
//
// One pass: x_t, eps and grad are read once, the result is written once, and the noise is drawn in registers. The sum is rounded once:
// its terms may cancel.
#include "images.h"

namespace purify::PURIFY_ISA {

template <typename T, bool kGuided, bool kNoisy>
void guided_step_with(T* out, const T* x_t, const T* eps, const T* grad, Row row, const Batch& batch) {
  const Wide<T> a = row.a, b = row.b, d = row.d, c = row.c;
  for_each_tile(batch, [=](Noise noise, int64_t tile, int64_t start, int count) {
    T z[kTile];
    if constexpr (kNoisy) noise.normals(tile, z);
    for (int i = 0; i < count; ++i) {
      Wide<T> x_next = a * x_t[start + i] + b * eps[start + i];
      if constexpr (kGuided) x_next += d * grad[start + i];
      if constexpr (kNoisy) x_next += c * z[i];
      out[start + i] = static_cast<T>(x_next);
    }
  });
}

template <typename T>
void guided_step(T* out, const T* x_t, const T* eps, const T* grad, Row row, const Batch& batch) {
  const bool noisy = row.c != 0;  // the last row of every plan draws nothing
  if (grad && noisy) return guided_step_with<T, true, true>(out, x_t, eps, grad, row, batch);
  if (grad) return guided_step_with<T, true, false>(out, x_t, eps, grad, row, batch);
  if (noisy) return guided_step_with<T, false, true>(out, x_t, eps, grad, row, batch);
  guided_step_with<T, false, false>(out, x_t, eps, grad, row, batch);
}

template void guided_step(float*, const float*, const float*, const float*, Row, const Batch&);
template void guided_step(double*, const double*, const double*, const double*, Row, const Batch&);

}  // namespace purify::PURIFY_ISA
