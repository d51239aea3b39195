// What both directions of group_norm_silu compute: the moments of a group, and what follows the norm in a channel.
#pragma once

#include "groups.cuh"

namespace purify::cuda {

// a / b for 0 < b < 2^126, in float to two units in the last place: the exact division calls a function.
__device__ inline float ratio(float a, float b) { return __fdividef(a, b); }
__device__ inline double ratio(double a, double b) { return a / b; }
__device__ inline Twofold ratio(Twofold a, Twofold b) { return a / b; }

// Count, mean and sum of squared deviations.
template <typename W>
struct Moments {
  W count, mean, squares;
};

// Of two sets together (Chan, Golub & LeVeque 1979).
template <typename W>
__device__ Moments<W> joined(const Moments<W>& a, const Moments<W>& b) {
  if (static_cast<double>(b.count) == 0) return a;
  const W count = a.count + b.count, share = ratio(b.count, count), apart = b.mean - a.mean;
  return {count, a.mean + apart * share, a.squares + b.squares + apart * apart * a.count * share};
}

// Two sums.
template <typename W>
struct Sums {
  W first, second;
};

template <typename W>
__device__ Sums<W> joined(const Sums<W>& a, const Sums<W>& b) {
  return {a.first + b.first, a.second + b.second};
}

// The moments of x - pivot over a member's vectors.
template <typename T, int N>
__device__ Moments<Wide<T>> moments_of(const Held<T, N>& held, const Member& me, Wide<T> pivot) {
  using W = Wide<T>;
  if (me.own <= 0) return {W(0), W(0), W(0)};
  W sum(0), squares(0);
#pragma unroll 1
  for (int u = 0; u < me.own; ++u) {
    const Pack<T, N> at = held[u];
#pragma unroll
    for (int k = 0; k < N; ++k) sum = sum + (W(widened(at.v[k])) - pivot);
  }
  const W count(me.own * N), mean = ratio(sum, count);
#pragma unroll 1
  for (int u = 0; u < me.own; ++u) {
    const Pack<T, N> at = held[u];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const W apart = W(widened(at.v[k])) - pivot - mean;
      squares = squares + apart * apart;
    }
  }
  return {count, mean, squares};
}

// How a group is normed: (x - pivot - mean) * rstd. The pivot is the group's first element: differences from it are all but
// exact, so that a large mean cancels nothing.
template <typename W>
struct Normed {
  W pivot, mean, rstd;

  __device__ W operator()(W x) const { return (x - pivot - mean) * rstd; }
};

template <typename W>
__device__ Normed<W> normed_by(const Moments<W>& all, W pivot, double norm_eps) {
  return {pivot, all.mean, W(1) / square_root(all.squares / all.count + W(norm_eps))};
}

// The first element of a group, 0 beyond the last.
template <typename T>
__device__ Wide<T> pivot_of(const T* x, const Groups& groups, int64_t image, int set) {
  return set < groups.sets ? Wide<T>(widened(x[groups.origin(image, set)])) : Wide<T>(0);
}

// The numbers of N channels in a row, from `channel` on; `otherwise` where there are none.
template <typename T, int N>
__device__ void numbers(Wide<T> (&out)[N], const Channels& from, int64_t image, int channel, int otherwise) {
  const int64_t at = image * from.stride + channel;
  const auto take = [&](auto number) {
#pragma unroll
    for (int k = 0; k < N; ++k) out[k] = number(k);
  };
  if (from.data == nullptr) return take([&](int) { return Wide<T>(otherwise); });
  if (from.dtype == kDtype<T>) return take([&](int k) { return Wide<T>(widened(static_cast<const T*>(from.data)[at + k])); });
  take([&](int k) { return Wide<T>(static_cast<const Value<T>*>(from.data)[at + k]); });
}

// What follows the norm in a channel, normed * slope + offset: (normed * weight + bias) * (1 + scale) + shift.
template <typename W>
struct Line {
  W slope, offset;

  __device__ W operator()(W normed) const { return normed * slope + offset; }
};

template <typename T, int N>
__device__ void lines_of(Line<Wide<T>> (&lines)[N], const Norm& norm, int64_t image, int channel) {
  using W = Wide<T>;
  W weight[N], bias[N], scale[N], shift[N];
  numbers<T>(weight, norm.weight, 0, channel, 1);
  numbers<T>(bias, norm.bias, 0, channel, 0);
  numbers<T>(scale, norm.scale, image, channel, 0);
  numbers<T>(shift, norm.shift, image, channel, 0);
#pragma unroll
  for (int k = 0; k < N; ++k) lines[k] = {weight[k] * (W(1) + scale[k]), bias[k] * (W(1) + scale[k]) + shift[k]};
}

// The lines of a vector's elements. In channels_last they are the same for all of a member's vectors.
template <typename T, int N>
__device__ void lines_at(Line<Wide<T>> (&lines)[N], const Norm& norm, const Groups& groups, const Member& me, int vector) {
  if (groups.channels_last) {
    if (vector == 0) lines_of<T>(lines, norm, me.image, me.set * groups.width + me.column * N);
    return;
  }
  Line<Wide<T>> line[1];
  lines_of<T>(line, norm, me.image, me.set * groups.width + (me.first + vector * me.members) * N / groups.pixels);
#pragma unroll
  for (int k = 0; k < N; ++k) lines[k] = line[0];
}

// sigmoid(y) for a result of type T: 16 bits do not show what the fast exponential and division leave out.
template <typename T>
__device__ Value<T> sigmoid(Value<T> y) {
  if constexpr (sizeof(T) == 2) return __fdividef(1.0f, 1.0f + __expf(-y));
  else return 1 / (1 + std::exp(-y));
}

inline Groups groups_of(const Norm& norm) {
  return {norm.images, norm.groups, norm.channels / norm.groups, norm.pixels, norm.x.channels_last};
}

// Blocks for whole groups; and what leaves, at `parts`, the moments of every chunk of every group.
Tiles tiles_of_norm(const Norm& norm);
void launch_moments(const char* op, cudaStream_t stream, void* parts, const Norm& norm);

inline int size_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

// The size of a Wide<T>: twice that of T.
inline int64_t wide_size(Dtype dtype) { return 2 * size_of(dtype); }

// How many elements are read at once. They lie in one channel (NCHW) or group (channels_last), and are 16 bytes, or 8 of the
// narrow types, or one element.
inline int vector_of(const Norm& norm) {
  const int size = size_of(norm.x.dtype), wide = size == 8 ? 1 : 16 / size;  // float64 is there to be right, not to be fast
  const int run = norm.x.channels_last ? norm.channels / norm.groups : norm.pixels;
  if (!norm.aligned) return 1;
  return run % wide == 0 ? wide : size == 2 && run % (wide / 2) == 0 ? wide / 2 : 1;
}

// Calls body(T{}, std::integral_constant<int, N>{}) for images of type T, read N elements at once.
template <typename Body>
void with_vector(Dtype dtype, int vector, Body body) {
  with_type(dtype, [&](auto type) {
    constexpr int kWide = sizeof(type) == 8 ? 1 : 16 / sizeof(type);
    if (vector == kWide) return body(type, std::integral_constant<int, kWide>{});
    if constexpr (sizeof(type) == 2)
      if (vector == kWide / 2) return body(type, std::integral_constant<int, kWide / 2>{});
    body(type, std::integral_constant<int, 1>{});
  });
}

}  // namespace purify::cuda
