// How the ops that draw noise walk over a batch: a thread has four elements in a row, hence one counter, or that of each of
// three channels.
#pragma once

#include "floats.cuh"

namespace purify::cuda {

constexpr int kQuad = 4;  // elements that a counter serves
constexpr unsigned kThreads = 256, kMostRows = 65535;

// What four elements of an image are to a kernel. kPlanes = 1: any four in NCHW order from `first` on, the last thread's fewer.
// kPlanes = C: the same four pixels, from `first` on, of all C channels; these are one run in channels_last.
template <int kPlanes>
struct Quad {
  int64_t image;
  int first, plane, numel;  // `plane` elements lie between two channels
  int count;
  bool packed;      // whether four in NCHW order are read as one
  int last[kQuad];  // with kPlanes = 1: where they are in channels_last

  __device__ int64_t origin() const { return image * numel; }
  __device__ int64_t at(int p) const { return origin() + p * plane + first; }
};

template <int kPlanes, typename Body>
__device__ void for_each_quad(const Batch& batch, bool packed, Body body) {
  const int numel = batch.channels * batch.pixels, each = kPlanes > 1 ? batch.pixels : numel;
  const unsigned counter = blockIdx.x * blockDim.x + threadIdx.x;
  if (counter >= (each + kQuad - 1u) / kQuad) return;
  const int first = static_cast<int>(counter) * kQuad;
  Quad<kPlanes> quad{0, first, batch.pixels, numel, each - first < kQuad ? each - first : kQuad, packed, {}};
  if (kPlanes == 1 && batch.channels > 1)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const int channel = (first + k) / batch.pixels;
      quad.last[k] = (first + k - channel * batch.pixels) * batch.channels + channel;
    }
  for (quad.image = blockIdx.y; quad.image < batch.images; quad.image += gridDim.y) body(quad);
}

template <typename W, typename T, int kPlanes>
__device__ void read(W (&values)[kPlanes][kQuad], const T* from, bool channels_last, const Quad<kPlanes>& quad) {
  if (kPlanes > 1 && channels_last) {
    Pack<T, kQuad> run[kPlanes];
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) run[p] = pack_at<kQuad>(from + quad.origin() + kPlanes * quad.first + p * kQuad);
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) values[p][k] = widened(run[(k * kPlanes + p) / kQuad].v[(k * kPlanes + p) % kQuad]);
  } else if (quad.packed && !channels_last) {
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
      const Pack<T, kQuad> run = pack_at<kQuad>(from + quad.at(p));
#pragma unroll
      for (int k = 0; k < kQuad; ++k) values[p][k] = widened(run.v[k]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      values[0][k] = k < quad.count ? widened(from[channels_last ? quad.origin() + quad.last[k] : quad.at(0) + k]) : W(0);
  }
}

template <typename T, typename W, int kPlanes>
__device__ void write(T* to, bool channels_last, const W (&values)[kPlanes][kQuad], const Quad<kPlanes>& quad) {
  if (kPlanes > 1 && channels_last) {
    Pack<T, kQuad> run[kPlanes];
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) run[(k * kPlanes + p) / kQuad].v[(k * kPlanes + p) % kQuad] = narrowed<T>(values[p][k]);
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) put(to + quad.origin() + kPlanes * quad.first + p * kQuad, run[p]);
  } else if (quad.packed && !channels_last) {
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
      Pack<T, kQuad> run;
#pragma unroll
      for (int k = 0; k < kQuad; ++k) run.v[k] = narrowed<T>(values[p][k]);
      put(to + quad.at(p), run);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      if (k < quad.count) to[channels_last ? quad.origin() + quad.last[k] : quad.at(0) + k] = narrowed<T>(values[0][k]);
  }
}

// The copy that the networks read, where there is one.
template <typename W, int kPlanes>
__device__ void write_network_copy(const Images& x_net, const W (&values)[kPlanes][kQuad], const Quad<kPlanes>& quad) {
  if (x_net.data == nullptr) return;
  with_type(x_net.dtype, [&](auto type) { write(static_cast<decltype(type)*>(x_net.data), x_net.channels_last, values, quad); });
}

__device__ inline Counter drawn(const Batch& batch, int64_t image, int element) {
  const uint64_t key = static_cast<uint64_t>(batch.key[image * batch.key_stride]), id = static_cast<uint64_t>(batch.ids[image]);
  const Counter counter{static_cast<uint32_t>(element / kQuad), static_cast<uint32_t>(*batch.step), static_cast<uint32_t>(id),
                        static_cast<uint32_t>(id >> 32)};
  return philox_block(counter, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
}

template <typename W, int kPlanes>
__device__ void draw_normals(W (&z)[kPlanes][kQuad], const Batch& batch, const Quad<kPlanes>& quad) {
#pragma unroll
  for (int p = 0; p < kPlanes; ++p) {
    const Counter words = drawn(batch, quad.image, p * quad.plane + quad.first);
    box_muller(words.c0, words.c1, z[p][0], z[p][1]);
    box_muller(words.c2, words.c3, z[p][2], z[p][3]);
  }
}

// Launches a kernel(..., packed, batch): `whole`, where there is one, takes the three channels of a pixel together, `any` takes
// all else. `aligned`: every pointer to images is a multiple of 16.
template <typename Kernel, typename... Arguments>
void launch_over_quads(const char* op, cudaStream_t stream, Kernel whole, Kernel any, bool aligned, const Batch& batch,
                       Arguments... arguments) {
  const int numel = batch.channels * batch.pixels;
  const bool all_channels = whole && batch.channels == 3 && batch.pixels % kQuad == 0 && aligned;
  const bool packed = aligned && numel % kQuad == 0;
  const unsigned quads = ((all_channels ? batch.pixels : numel) + kQuad - 1u) / kQuad;
  const unsigned threads = quads < kThreads ? (quads + 31) / 32 * 32 : kThreads;
  const dim3 grid((quads + threads - 1) / threads,
                  batch.images < kMostRows ? static_cast<unsigned>(batch.images) : kMostRows);
  launch(op, stream, all_channels ? whole : any, grid, threads, arguments..., packed, batch);
}

}  // namespace purify::cuda
