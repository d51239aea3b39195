// purify::group_norm_silu_backward on GPUs, NCHW and channels_last. Specification: purify_engine/reference/layers.py.
//
// Four kernels: the moments of every group; two sums over the pixels of every channel of every image; grad_x; the gradients of
// what is per channel. The gradient through SiLU is computed twice instead of being kept, by one function and without fused
// multiply-adds (setup.py), hence to the same bit: in a group of one element, whose gradient is 0, the terms cancel to 0.
#include "moments.cuh"

namespace purify::cuda {

constexpr int kSummed = 16;  // vectors of a channel that a member sums

// For the elements of a vector: what the norm makes of x, and the gradient to what SiLU is applied to.
template <typename T, int N>
struct Elements {
  Wide<T> centred[N], grad[N];

  __device__ Elements(const T* x, const T* grad_out, const Normed<Wide<T>>& normed, const Line<Wide<T>> (&lines)[N], bool silu) {
    const Pack<T, N> at_x = pack_at<N>(x), at_grad = pack_at<N>(grad_out);
#pragma unroll
    for (int k = 0; k < N; ++k) centred[k] = normed(Wide<T>(widened(at_x.v[k])));
    Value<T> through[N];
#pragma unroll
    for (int k = 0; k < N; ++k) through[k] = widened(at_grad.v[k]);
    if (silu)
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const Value<T> affine = static_cast<Value<T>>(lines[k](centred[k])), gate = sigmoid<T>(affine);
        through[k] = through[k] * gate * (1 + affine * (1 - gate));
      }
#pragma unroll
    for (int k = 0; k < N; ++k) grad[k] = Wide<T>(through[k]);
  }
};

template <typename W>
__device__ Normed<W> gathered_norm(Moments<W>* shared, const Member& me, const Moments<W>* parts, int chunks, W pivot,
                                   const Norm& norm, int group) {
  const Moments<W>* const of_group = parts + (me.image * norm.groups + group) * chunks;
  return normed_by(gathered(shared, me, chunks, [=](int i) { return of_group[i]; }), pivot, norm.norm_eps);
}

// Where the sums of a chunk of a channel are kept.
struct SumsAt {
  int channels, chunks;

  __device__ int64_t operator()(int64_t image, int chunk, int channel) const {
    return (image * chunks + chunk) * channels + channel;
  }
};

// Over the pixels of a channel: the sum of the gradient through SiLU, and of its product with the normed input. `each` are the
// channels, taken for groups of their own; `chunks` are those of a real group's moments.
template <typename T, int N>
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks)
    channel_sums_kernel(Sums<Wide<T>>* sums, const Moments<Wide<T>>* parts, int chunks, const T* grad_out, const T* x, Norm norm,
                        Groups groups, Groups each, Tiles tiles) {
  using W = Wide<T>;
  __shared__ Moments<W> shared_moments[kMostThreads];
  __shared__ Sums<W> shared[kMostThreads];
  const Member me = member_of<N>(each, tiles);
  const int group = me.set / groups.width;
  const W pivot = pivot_of(x, groups, me.image, group);
  const Normed<W> normed = gathered_norm(shared_moments, me, parts, chunks, pivot, norm, group);
  Sums<W> mine{W(0), W(0)};
  if (me.own > 0) {
    Line<W> line[1], lines[N];
    lines_of<T>(line, norm, me.image, me.set);
#pragma unroll
    for (int k = 0; k < N; ++k) lines[k] = line[0];
#pragma unroll(sizeof(Pack<T, N>) < 8 ? 4 : 1)  // narrow reads: several at once
    for (int u = 0; u < me.own; ++u) {
      const int64_t at = me.start + u * me.stride;
      const Elements<T, N> of(x + at, grad_out + at, normed, lines, norm.silu);
#pragma unroll
      for (int k = 0; k < N; ++k) mine = joined(mine, Sums<W>{of.grad[k], of.grad[k] * of.centred[k]});
    }
  }
  const Sums<W> all = joined_by_all(shared, me, mine);
  if (me.speaks()) sums[SumsAt{each.sets, tiles.chunks}(me.image, me.chunk, me.set)] = all;
}

// The mean over a group of the gradient to the normed input is taken from it, and the share of the normed input itself.
template <typename T, int N>
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks)
    grad_x_kernel(T* grad_x, const Sums<Wide<T>>* sums, SumsAt at, const Moments<Wide<T>>* parts, const T* grad_out, const T* x,
                  Norm norm, Groups groups, Tiles tiles) {
  using W = Wide<T>;
  __shared__ Moments<W> shared_moments[kMostThreads];
  __shared__ Sums<W> shared[kMostThreads];
  const Member me = member_of<N>(groups, tiles);
  const W pivot = pivot_of(x, groups, me.image, me.set);
  const Normed<W> normed = gathered_norm(shared_moments, me, parts, tiles.chunks, pivot, norm, me.set);
  const Sums<W> all = gathered(shared, me, groups.width * at.chunks, [&](int i) {
    const int channel = me.set * groups.width + i % groups.width;
    const Sums<W> of = sums[at(me.image, i / groups.width, channel)];
    Line<W> line[1];
    lines_of<T>(line, norm, me.image, channel);
    return Sums<W>{line[0].slope * of.first, line[0].slope * of.second};
  });
  const W count(groups.width * groups.pixels), level = all.first / count, tilt = all.second / count;
  Line<W> lines[N];
#pragma unroll 1
  for (int u = 0; u < me.own; ++u) {
    lines_at<T>(lines, norm, groups, me, u);
    const int64_t place = me.start + u * me.stride;
    const Elements<T, N> of(x + place, grad_out + place, normed, lines, norm.silu);
    Pack<T, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k)
      out.v[k] = narrowed<T>(normed.rstd * (lines[k].slope * of.grad[k] - level - of.centred[k] * tilt));
    put(grad_x + place, out);
  }
}

// A block of the last kernel takes so many channels; the lanes of a channel share the images between them.
constexpr int kChannels = 32, kLanes = kMostThreads / kChannels;

template <typename W>
__device__ void put_number(const Channels& to, int64_t image, int channel, W value) {
  with_type(to.dtype, [&](auto type) {
    using T = decltype(type);
    static_cast<T*>(to.data)[image * to.stride + channel] = narrowed<T>(value);
  });
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks)
    per_channel_kernel(NormGrads grads, const Sums<Wide<T>>* sums, SumsAt at, Norm norm) {
  using W = Wide<T>;
  using Total = std::conditional_t<std::is_same_v<W, float>, double, W>;
  __shared__ Sums<Total> shared[kMostThreads];
  Member me{};
  const int channel = blockIdx.x * kChannels + threadIdx.x % kChannels;
  me.rank = threadIdx.x / kChannels, me.members = kLanes, me.slot = threadIdx.x % kChannels * kLanes + me.rank;
  Sums<Total> mine{Total(0), Total(0)};
  for (int64_t image = me.rank; image < norm.images && channel < norm.channels; image += kLanes) {
    Sums<W> of{W(0), W(0)};
    for (int chunk = 0; chunk < at.chunks; ++chunk) of = joined(of, sums[at(image, chunk, channel)]);
    W weight[1], bias[1], scale[1];
    numbers<T>(weight, norm.weight, 0, channel, 1);
    numbers<T>(bias, norm.bias, 0, channel, 0);
    numbers<T>(scale, norm.scale, image, channel, 0);
    const Total gain(W(1) + scale[0]);
    mine = joined(mine, Sums<Total>{gain * Total(of.second), gain * Total(of.first)});
    if (grads.scale.data) put_number(grads.scale, image, channel, weight[0] * of.second + bias[0] * of.first);
    if (grads.shift.data) put_number(grads.shift, image, channel, of.first);
  }
  const Sums<Total> all = joined_by_all(shared, me, mine);
  if (me.rank || channel >= norm.channels) return;
  put_number(grads.weight, 0, channel, all.first);
  put_number(grads.bias, 0, channel, all.second);
}

// The channels, taken for groups of one each. In channels_last a thread reads one element of a pixel: its neighbours are of other
// channels.
Groups channels_of(const Norm& norm) { return {norm.images, norm.channels, 1, norm.pixels, norm.x.channels_last}; }

int sums_vector(const Norm& norm) { return norm.x.channels_last ? 1 : vector_of(norm); }

Tiles tiles_of_channels(const Norm& norm) {
  return tiles_of(channels_of(norm), sums_vector(norm), size_of(norm.x.dtype), kSummed);
}

// Moments come first in the workspace, sums after them.
int64_t moments_bytes(const Norm& norm) {
  return 3 * wide_size(norm.x.dtype) * norm.images * norm.groups * tiles_of_norm(norm).chunks;
}

int64_t group_norm_silu_backward_workspace(const Norm& norm) {
  return moments_bytes(norm) + 2 * wide_size(norm.x.dtype) * norm.images * norm.channels * tiles_of_channels(norm).chunks;
}

void group_norm_silu_backward(cudaStream_t stream, const NormGrads& grads, void* workspace, const void* grad_out,
                              const Norm& norm) {
  const char* const op = "group_norm_silu_backward";
  const Groups groups = groups_of(norm), each = channels_of(norm);
  const Tiles whole = tiles_of_norm(norm), tiles = tiles_of_channels(norm);
  const SumsAt at{norm.channels, tiles.chunks};
  void* const sums = static_cast<char*>(workspace) + moments_bytes(norm);
  launch_moments(op, stream, workspace, norm);
  with_vector(norm.x.dtype, sums_vector(norm), [&](auto type, auto vector) {
    using T = decltype(type);
    launch(op, stream, channel_sums_kernel<T, vector>, tiles.grid(each), tiles.threads(), static_cast<Sums<Wide<T>>*>(sums),
           static_cast<const Moments<Wide<T>>*>(workspace), whole.chunks, static_cast<const T*>(grad_out),
           static_cast<const T*>(norm.x.data), norm, groups, each, tiles);
  });
  with_vector(norm.x.dtype, vector_of(norm), [&](auto type, auto vector) {
    using T = decltype(type);
    launch(op, stream, grad_x_kernel<T, vector>, whole.grid(groups), whole.threads(), static_cast<T*>(grads.x),
           static_cast<const Sums<Wide<T>>*>(sums), at, static_cast<const Moments<Wide<T>>*>(workspace),
           static_cast<const T*>(grad_out), static_cast<const T*>(norm.x.data), norm, groups, whole);
  });
  with_type(norm.x.dtype, [&](auto type) {
    using T = decltype(type);
    launch(op, stream, per_channel_kernel<T>, dim3((norm.channels + kChannels - 1) / kChannels), kMostThreads, grads,
           static_cast<const Sums<Wide<T>>*>(sums), at, norm);
  });
}

}  // namespace purify::cuda
