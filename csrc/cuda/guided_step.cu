// purify::guided_step on GPUs. Specification: purify_engine/reference/process.py.
//
// One pass: x_t, eps and grad are read once, in the layout and the precision in which the networks leave them, x_next and the
// networks' copy of it are written once, and the noise is drawn in registers. The row of the plan is read here, so that a graph
// replays any plan.
#include "images.cuh"

namespace purify::cuda {

// x_j = a x_i + b eps + d grad + c z.
struct Row {
  double a, b, d, c;
};

// A step beyond the plan makes every pixel NaN: the host, which could refuse it, never learns the step.
__device__ inline Row row_at(const double* rows, int64_t num_rows, int64_t step) {
  if (step < 0 || step >= num_rows) {
    const double nan = bit_cast<double>(~uint64_t{0});
    return {nan, nan, nan, nan};
  }
  return {rows[4 * step], rows[4 * step + 1], rows[4 * step + 2], rows[4 * step + 3]};
}

// eps and grad are of type E, x_t of type T.
template <typename T, typename E, int kPlanes>
__global__ void guided_step_kernel(T* x_next, Images x_net, const T* x_t, Images eps, Images grad, const double* rows,
                                   int64_t num_rows, bool packed, Batch batch) {
  using W = Wide<T>;
  for_each_quad<kPlanes>(batch, packed, [&](const Quad<kPlanes>& quad) {
    T x[kPlanes][kQuad], predicted[kPlanes][kQuad], towards[kPlanes][kQuad] = {}, z[kPlanes][kQuad] = {};
    read(x, x_t, false, quad);
    read(predicted, static_cast<const E*>(eps.data), eps.channels_last, quad);
    const bool guided = grad.data != nullptr;
    if (guided) read(towards, static_cast<const E*>(grad.data), grad.channels_last, quad);
    const Row row = row_at(rows, num_rows, *batch.step);
    const bool noisy = row.c != 0;  // the last row of every plan draws nothing
    if (noisy) draw_normals(z, batch, quad);
#pragma unroll
    for (int p = 0; p < kPlanes; ++p)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        W sum = W(row.a) * W(x[p][k]) + W(row.b) * W(predicted[p][k]);
        if (guided) sum = sum + W(row.d) * W(towards[p][k]);
        if (noisy) sum = sum + W(row.c) * W(z[p][k]);
        x[p][k] = narrowed<T>(sum);  // rounded once: the terms may cancel
      }
    write(x_next, false, x, quad);
    write_network_copy(x_net, x, quad);
  });
}

void guided_step(cudaStream_t stream, Images x_next, Images x_net, Images x_t, Images eps, Images grad, const double* rows,
                 int64_t num_rows, const Batch& batch) {
  bool aligned = true;
  for (const Images& each : {x_next, x_net, x_t, eps, grad}) aligned = aligned && is_aligned(each.data);
  const auto as = [&](auto* out, auto type) {
    using T = std::remove_pointer_t<decltype(out)>;
    using E = decltype(type);
    decltype(&guided_step_kernel<T, E, 1>) whole = nullptr;
    if constexpr (std::is_same_v<T, float>) whole = guided_step_kernel<T, E, 3>;  // float64 is there to be right, not to be fast
    launch_over_quads("guided_step", stream, whole, guided_step_kernel<T, E, 1>, aligned, batch, out, x_net,
                      static_cast<const T*>(x_t.data), eps, grad, rows, num_rows);
  };
  if (x_next.dtype == Dtype::float64) return as(static_cast<double*>(x_next.data), double{});
  float* out = static_cast<float*>(x_next.data);
  if (eps.dtype == Dtype::float16) return as(out, Half{});
  if (eps.dtype == Dtype::bfloat16) return as(out, BFloat16{});
  as(out, float{});
}

}  // namespace purify::cuda
