// purify::group_norm_silu on GPUs, NCHW and channels_last. Specification: purify_engine/reference/layers.py.
//
// A group that one block can hold is read once and written once, by one kernel. A larger one takes two: every block leaves the
// moments of its chunk, then joins those of all chunks and norms its own.
#include "moments.cuh"

namespace purify::cuda {

template <typename T, int N>
__device__ void write_normed(T* y, const Held<T, N>& held, const Normed<Wide<T>>& normed, const Norm& norm, const Groups& groups,
                             const Member& me) {
  Line<Wide<T>> lines[N];
#pragma unroll 1
  for (int u = 0; u < me.own; ++u) {
    lines_at<T>(lines, norm, groups, me, u);
    const Pack<T, N> in = held[u];
    Pack<T, N> out;
    Value<T> affine[N];
#pragma unroll
    for (int k = 0; k < N; ++k) affine[k] = static_cast<Value<T>>(lines[k](normed(Wide<T>(widened(in.v[k])))));
    if (norm.silu)
#pragma unroll
      for (int k = 0; k < N; ++k) affine[k] *= sigmoid<T>(affine[k]);
#pragma unroll
    for (int k = 0; k < N; ++k) out.v[k] = narrowed<T>(affine[k]);
    put(y + me.start + u * me.stride, out);
  }
}

// kGathers: the moments of every chunk are in `parts` already. kWrites: y is written; else the moments of the chunk are.
template <typename T, int N, bool kGathers, bool kWrites>
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks)
    group_norm_kernel(T* y, Moments<Wide<T>>* parts, const T* x, Norm norm, Groups groups, Tiles tiles) {
  using W = Wide<T>;
  __shared__ Moments<W> shared[kMostThreads];
  __shared__ Held<T, N> held;
  const Member me = member_of<N>(groups, tiles);
  held.read(x, me);
  const W pivot = pivot_of(x, groups, me.image, me.set);
  Moments<W>* const of_group = parts + (me.image * groups.sets + me.set) * tiles.chunks;
  Moments<W> all;
  if constexpr (kGathers) all = gathered(shared, me, tiles.chunks, [=](int i) { return of_group[i]; });
  else all = joined_by_all(shared, me, moments_of(held, me, pivot));
  if constexpr (kWrites) write_normed(y, held, normed_by(all, pivot, norm.norm_eps), norm, groups, me);
  else if (me.speaks()) of_group[me.chunk] = all;
}

Tiles tiles_of_norm(const Norm& norm) { return tiles_of(groups_of(norm), vector_of(norm), size_of(norm.x.dtype), kHeld); }

int64_t group_norm_silu_workspace(const Norm& norm) {
  const int chunks = tiles_of_norm(norm).chunks;
  return chunks > 1 ? 3 * wide_size(norm.x.dtype) * norm.images * norm.groups * chunks : 0;
}

template <typename T, int N, bool kGathers, bool kWrites>
void launch_norm(const char* op, cudaStream_t stream, void* y, void* parts, const Norm& norm) {
  const Groups groups = groups_of(norm);
  const Tiles tiles = tiles_of_norm(norm);
  launch(op, stream, group_norm_kernel<T, N, kGathers, kWrites>, tiles.grid(groups), tiles.threads(), static_cast<T*>(y),
         static_cast<Moments<Wide<T>>*>(parts), static_cast<const T*>(norm.x.data), norm, groups, tiles);
}

void launch_moments(const char* op, cudaStream_t stream, void* parts, const Norm& norm) {
  with_vector(norm.x.dtype, vector_of(norm), [&](auto type, auto vector) {
    launch_norm<decltype(type), vector, false, false>(op, stream, nullptr, parts, norm);
  });
}

void group_norm_silu(cudaStream_t stream, void* y, void* workspace, const Norm& norm) {
  const bool held = tiles_of_norm(norm).chunks == 1;
  if (!held) launch_moments("group_norm_silu", stream, workspace, norm);
  with_vector(norm.x.dtype, vector_of(norm), [&](auto type, auto vector) {
    using T = decltype(type);
    if (held) launch_norm<T, vector, false, true>("group_norm_silu", stream, y, workspace, norm);
    else launch_norm<T, vector, true, true>("group_norm_silu", stream, y, workspace, norm);
  });
}

}  // namespace purify::cuda
