// How the blocks of group_norm_silu are laid over the groups of a batch, in NCHW and in channels_last.
//
// A block serves `sets` groups at once, each by `members` threads. Member r takes the vectors r, r + members, ... of its
// block's share of the group; a large group is shared by several blocks, its `chunks`.
#pragma once

#include <algorithm>

#include "floats.cuh"

namespace purify::cuda {

constexpr int kMostThreads = 256, kLeastBlocks = 2;  // of a block, and on a multiprocessor: at most 128 registers a thread
constexpr int kHeld = 8;                             // vectors of a chunk that a member keeps at hand
constexpr int kSector = 32;                          // bytes that memory hands out at once

// Groups of `width` channels and `pixels` pixels, `sets` of them an image.
struct Groups {
  int64_t images;
  int sets, width, pixels;
  bool channels_last;

  PURIFY_BOTH int channels() const { return sets * width; }
  __device__ int64_t origin(int64_t image, int set) const {
    return image * channels() * pixels + static_cast<int64_t>(set * width) * (channels_last ? 1 : pixels);
  }
};

struct Tiles {
  int vectors, chunk;  // of a group, and of one block's share of it
  int chunks = 1, sets = 1, members = 1;
  int columns = 1;  // vectors side by side: those of a pixel in channels_last, else one for every member

  PURIFY_BOTH unsigned set_blocks(const Groups& groups) const { return (groups.sets + sets - 1) / sets; }
  dim3 grid(const Groups& groups) const { return dim3(static_cast<unsigned>(groups.images * set_blocks(groups) * chunks)); }
  unsigned threads() const { return static_cast<unsigned>(sets * members); }
};

// `vector` elements of `size` bytes are read at once, and a member takes `each` such vectors at most. In channels_last a block
// takes enough groups to fill a sector, unless that forces a group apart that one block could hold; elsewhere it takes several
// where they are small. The number of images has no say: an image is normed alike, to the bit, in any batch.
inline Tiles tiles_of(const Groups& groups, int vector, int size, int each) {
  Tiles tiles{groups.width * groups.pixels / vector, 0};
  if (groups.channels_last) {
    tiles.columns = groups.width / vector;
    const auto rows = [&](int sets) { return std::min(kMostThreads / (sets * tiles.columns), groups.pixels); };
    const auto holds = [&](int sets) { return tiles.vectors <= rows(sets) * tiles.columns * each; };
    for (int sets = 2; sets <= groups.sets && sets * tiles.columns <= kMostThreads; sets *= 2) {
      if (tiles.sets * groups.width * size >= kSector || (holds(1) && !holds(sets))) break;
      tiles.sets = sets;
    }
    tiles.members = rows(tiles.sets) * tiles.columns;
  } else {
    while (tiles.members < kMostThreads && tiles.members < tiles.vectors) tiles.members *= 2;
    tiles.sets = std::min(kMostThreads / tiles.members, groups.sets);
    tiles.columns = tiles.members;
  }
  tiles.chunk = tiles.members * each;
  tiles.chunks = (tiles.vectors + tiles.chunk - 1) / tiles.chunk;
  return tiles;
}

// A thread's part: `own` vectors of a group, the first at `start`, the next `stride` elements on. Threads beyond the last group
// own less than nothing.
struct Member {
  int64_t image, start, stride;
  int set, chunk, own;
  int rank, members, slot;  // its place among those of its group, their number, and its place among all of the block
  int column, first;        // of its first vector: the place among those of a pixel, and among those of the group

  __device__ bool speaks() const { return own >= 0 && rank == 0; }
};

// N: the elements of a vector.
template <int N>
__device__ Member member_of(const Groups& groups, const Tiles& tiles) {
  const int thread = threadIdx.x, row = thread / (tiles.columns * tiles.sets), of = thread / tiles.columns % tiles.sets;
  const unsigned share = blockIdx.x / tiles.chunks, image = share / tiles.set_blocks(groups);
  Member me;
  me.image = image;
  me.set = static_cast<int>(share - image * tiles.set_blocks(groups)) * tiles.sets + of;
  me.chunk = blockIdx.x % tiles.chunks;
  me.column = thread % tiles.columns;
  me.rank = row * tiles.columns + me.column;
  me.members = tiles.members;
  me.slot = of * tiles.members + me.rank;
  me.first = me.chunk * tiles.chunk + me.rank;
  const int left = min(tiles.chunk, tiles.vectors - me.chunk * tiles.chunk) - me.rank;
  me.own = me.set >= groups.sets ? -1 : left > 0 ? (left + me.members - 1) / me.members : 0;
  const int64_t from = groups.channels_last ? static_cast<int64_t>(me.first / tiles.columns) * groups.channels() + me.column * N
                                            : static_cast<int64_t>(me.first) * N;
  me.start = groups.origin(me.image, me.set) + from;
  me.stride = groups.channels_last ? static_cast<int64_t>(tiles.members / tiles.columns) * groups.channels()
                                   : static_cast<int64_t>(tiles.members) * N;
  return me;
}

// A block's share of its groups, kept in shared memory: a thread reads its own part of it only.
template <typename T, int N>
struct Held {
  Pack<T, N> vectors[kHeld * kMostThreads];

  __device__ const Pack<T, N>& operator[](int vector) const { return vectors[vector * kMostThreads + threadIdx.x]; }

  __device__ void read(const T* from, const Member& me) {
    Pack<T, N> read[kHeld];
#pragma unroll
    for (int u = 0; u < kHeld; ++u)
      if (u < me.own) read[u] = pack_at<N>(from + me.start + u * me.stride);
#pragma unroll
    for (int u = 0; u < kHeld; ++u)
      if (u < me.own) vectors[u * kMostThreads + threadIdx.x] = read[u];
  }
};

// What all members of a group have, joined in a tree: always in the same order. Every thread of the block calls it, once for
// each array `shared`.
template <typename S>
__device__ S joined_by_all(S* shared, const Member& me, const S& mine) {
  S* seat = shared + me.slot;
  *seat = mine;
  for (int length = me.members; length > 1;) {
    const int half = (length + 1) / 2;
    __syncthreads();
    if (me.rank + half < length) *seat = joined(*seat, seat[half]);
    length = half;
  }
  __syncthreads();
  return *(seat - me.rank);
}

// The same of `count` parts in memory, part(0), part(1), ...
template <typename S, typename Part>
__device__ S gathered(S* shared, const Member& me, int count, Part part) {
  S mine{};
  if (me.own >= 0)
    for (int i = me.rank; i < count; i += me.members) mine = joined(mine, part(i));
  return joined_by_all(shared, me, mine);
}

}  // namespace purify::cuda
