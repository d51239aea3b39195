// purify::q_sample on GPUs. Specification: purify_engine/reference/process.py.
//
// One pass: one read, and one write for each of x_t and the networks' copy of it.
#include "images.cuh"

namespace purify::cuda {

template <typename T, int kPlanes>
__global__ void q_sample_kernel(T* x_t, Images x_net, const T* x_start, const double* marginal, bool packed, Batch batch) {
  for_each_quad<kPlanes>(batch, packed, [&](const Quad<kPlanes>& quad) {
    T x[kPlanes][kQuad], z[kPlanes][kQuad];
    read(x, x_start, false, quad);
    draw_normals(z, batch, quad);
    const Wide<T> signal = marginal[0], sigma = marginal[1];
#pragma unroll
    for (int p = 0; p < kPlanes; ++p)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[p][k] = narrowed<T>(signal * Wide<T>(x[p][k]) + sigma * Wide<T>(z[p][k]));
    write(x_t, false, x, quad);
    write_network_copy(x_net, x, quad);
  });
}

template <typename T>
void q_sample_as(cudaStream_t stream, T* x_t, const Images& x_net, const T* x_start, const double* marginal, const Batch& batch) {
  const bool aligned = is_aligned(x_t) && is_aligned(x_net.data) && is_aligned(x_start);
  decltype(&q_sample_kernel<T, 1>) whole = nullptr;
  if constexpr (std::is_same_v<T, float>) whole = q_sample_kernel<T, 3>;  // float64 is there to be right, not to be fast
  launch_over_quads("q_sample", stream, whole, q_sample_kernel<T, 1>, aligned, batch, x_t, x_net, x_start, marginal);
}

void q_sample(cudaStream_t stream, Images x_t, Images x_net, Images x_start, const double* marginal, const Batch& batch) {
  const auto as = [&](auto* out) { q_sample_as(stream, out, x_net, static_cast<decltype(out)>(x_start.data), marginal, batch); };
  if (x_t.dtype == Dtype::float64) return as(static_cast<double*>(x_t.data));
  as(static_cast<float*>(x_t.data));
}

}  // namespace purify::cuda
