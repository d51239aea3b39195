// purify::philox and purify::philox_normal on GPUs. Specification: purify_engine/reference/philox.py.
#include "images.cuh"

namespace purify::cuda {

// One counter, for its known answers.
__global__ void philox_block_kernel(uint32_t* words, const uint32_t* counter, const uint32_t* key) {
  const Counter of = philox_block({counter[0], counter[1], counter[2], counter[3]}, key[0], key[1]);
  words[0] = of.c0, words[1] = of.c1, words[2] = of.c2, words[3] = of.c3;
}

__global__ void philox_kernel(int64_t* out, bool packed, Batch batch) {
  for_each_quad<1>(batch, packed, [&](const Quad<1>& quad) {
    const Counter of = drawn(batch, quad.image, quad.first);
    const int64_t words[1][kQuad] = {{of.c0, of.c1, of.c2, of.c3}};
    write(out, false, words, quad);
  });
}

template <typename T>
__global__ void philox_normal_kernel(T* out, bool packed, Batch batch) {
  for_each_quad<1>(batch, packed, [&](const Quad<1>& quad) {
    T z[1][kQuad];
    draw_normals(z, batch, quad);
    write(out, false, z, quad);
  });
}

template <typename T>
void philox_normal_as(cudaStream_t stream, T* out, const Batch& batch) {
  launch_over_quads("philox_normal", stream, philox_normal_kernel<T>, philox_normal_kernel<T>, is_aligned(out), batch, out);
}

void philox_block(cudaStream_t stream, uint32_t* words, const uint32_t* counter, const uint32_t* key) {
  launch("philox_block", stream, philox_block_kernel, dim3(1), 1, words, counter, key);
}

void philox(cudaStream_t stream, int64_t* out, const Batch& batch) {
  launch_over_quads("philox", stream, philox_kernel, philox_kernel, is_aligned(out), batch, out);
}

void philox_normal(cudaStream_t stream, void* out, Dtype dtype, const Batch& batch) {
  if (dtype == Dtype::float64) return philox_normal_as(stream, static_cast<double*>(out), batch);
  philox_normal_as(stream, static_cast<float*>(out), batch);
}

}  // namespace purify::cuda
