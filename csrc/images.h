// How an op walks over the images of a batch, drawing each element's noise as it goes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops.h"
#include "philox.h"

namespace purify::PURIFY_ISA {

inline Noise noise_of(const Batch& batch, int64_t image) {
  const int64_t key = batch.key[image * batch.key_stride];
  return {static_cast<uint64_t>(key), static_cast<uint64_t>(batch.ids[image]), static_cast<uint32_t>(*batch.step)};
}

// Tiles that one thread takes at a time: enough work to outweigh starting it.
constexpr int64_t kTilesPerTask = 128;

// Calls body(noise, tile, start, count) for every tile of every image: `start` is the tile's place in the batch, `count` its elements.
template <typename Body>
void for_each_tile(const Batch& batch, Body body) {
  const int64_t tiles = (batch.numel + kTile - 1) / kTile;  // of one image
  const int64_t all = batch.images * tiles;
  const int64_t tasks = (all + kTilesPerTask - 1) / kTilesPerTask;
  const int threads = static_cast<int>(std::min<int64_t>(batch.threads, tasks));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    for (int64_t i = task * kTilesPerTask; i < std::min(all, (task + 1) * kTilesPerTask); ++i) {
      const int64_t image = i / tiles, tile = i % tiles;
      const int64_t count = std::min<int64_t>(kTile, batch.numel - tile * kTile);
      body(noise_of(batch, image), tile, image * batch.numel + tile * kTile, static_cast<int>(count));
    }
  }
}

}  // namespace purify::PURIFY_ISA
