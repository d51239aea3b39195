// purify::philox and purify::philox_normal on CPUs. Specification: purify_engine/reference/philox.py.
#include "images.h"

namespace purify::PURIFY_ISA {

// Four words for one counter of four words and a key of two.
void philox_block(uint32_t* words, const uint32_t* counter, const uint32_t* key) {
  const Words drawn = philox(counter[0], counter[1], counter[2] | uint64_t{counter[3]} << 32, key[0] | uint64_t{key[1]} << 32);
  for (int k = 0; k < 4; ++k) words[k] = drawn.w[k][0];
}

void philox_words(int64_t* out, const Batch& batch) {
  for_each_tile(batch, [=](Noise noise, int64_t tile, int64_t start, int count) {
    const Words words = noise.words(tile);
    for (int i = 0; i < count; ++i) out[start + i] = words.w[i % 4][i / 4];
  });
}

template <typename T>
void philox_normal(T* out, const Batch& batch) {
  for_each_tile(batch, [=](Noise noise, int64_t tile, int64_t start, int count) {
    T z[kTile];
    noise.normals(tile, z);
    for (int i = 0; i < count; ++i) out[start + i] = z[i];
  });
}

template void philox_normal(float*, const Batch&);
template void philox_normal(double*, const Batch&);

}  // namespace purify::PURIFY_ISA
