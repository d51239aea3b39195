// A 3x3 convolution, stride 1, padding 1, by Winograd's minimal filtering. Specification: purify_engine/reference/layers.py (conv3x3).
//
// Images are channels_last, float32. A block of tiles is gathered and transformed; for every point of the transform the block's tiles
// [tiles, channels] are multiplied by the weights of that point [channels, out_channels]; the products are transformed back and stored
// with everything that follows the convolution.
//
// Filters come in one of two forms. As they are, they are transformed as they stream by, a chunk of channels at a time: a single image
// waits for memory more than for arithmetic, and transformed filters are up to four times as large. Transformed, for larger batches.
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "ops.h"
#include "panels.h"
#include "winograd.h"

namespace purify::PURIFY_ISA {

constexpr int64_t kApart = 16;  // floats between rows of a buffer, so that their addresses do not collide in the cache

int64_t panels_of(int64_t out_channels) { return (out_channels + kPanel - 1) / kPanel; }
int64_t depth_of(int64_t channels) { return rounded_up(channels, kUnroll); }

// The filters of one panel, and how they are cut into chunks of channels. A chunk of transformed filters is [points][channels][panel],
// the points a little apart; of filters as they are, [channels][taps][panel].
struct Chunks {
  int64_t depth, channels, point, plain, transformed;

  Chunks(int64_t channels_in, int results, bool kept) : depth(depth_of(channels_in)) {
    // Half of the first-level cache for the filters of a point; made on the way, those of all points stay in the second level.
    channels = std::min<int64_t>(depth, (kept ? 4096 : 2048) / kPanel);
    point = channels * kPanel + kApart;
    plain = channels * 9 * kPanel;
    transformed = (results + 2) * (results + 2) * point;
  }

  int64_t count() const { return (depth + channels - 1) / channels; }
  int64_t size(int64_t chunk) const { return std::min(channels, depth - chunk * channels); }
};

int64_t conv3x3_winograd_packed_size(int kept, int64_t channels, int64_t out_channels) {
  const Chunks chunks(channels, kept, kept);
  return panels_of(out_channels) * (kept ? chunks.count() * chunks.transformed : 9 * chunks.depth * kPanel);
}

// A chunk of `depth` channels of one panel, transformed.
template <int kResults>
void transform_filters(float* weights, int64_t point, const float* packed, int64_t depth) {
  constexpr int kPoints = kResults + 2;
  for (int64_t k = 0; k < depth; ++k, packed += 9 * kPanel) {
    for (int half = 0; half < kPanel; half += kLanes) {
      Vector columns[3][kPoints];
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        const Vector column[3] = {load(packed + j * kPanel + half), load(packed + (3 + j) * kPanel + half),
                                  load(packed + (6 + j) * kPanel + half)};
        Winograd<kResults>::weights(column, columns[j]);
      }
#pragma GCC unroll 6
      for (int i = 0; i < kPoints; ++i) {
        const Vector row[3] = {columns[0][i], columns[1][i], columns[2][i]};
        Vector points[kPoints];
        Winograd<kResults>::weights(row, points);
#pragma GCC unroll 6
        for (int j = 0; j < kPoints; ++j) store(weights + (i * kPoints + j) * point + k * kPanel + half, points[j]);
      }
    }
  }
}

// [channels][taps][panel] of one panel, zeros where there is no channel.
void pack_panel(float* packed, const Filters& filters, int64_t panel) {
  for (int64_t k = 0; k < depth_of(filters.channels); ++k) {
    for (int64_t lane = 0; lane < kPanel; ++lane) {
      const int64_t m = panel * kPanel + lane;
      const bool inside = k < filters.channels && m < filters.out_channels;
      const float* from = inside ? filters.weight + m * filters.out_stride + k * filters.stride : nullptr;
      for (int tap = 0; tap < 9; ++tap) packed[(k * 9 + tap) * kPanel + lane] = inside ? from[filters.flip ? 8 - tap : tap] : 0.0f;
    }
  }
}

// For F(kept x kept, 3x3), or as they are where `kept` is 0.
void conv3x3_winograd_pack(float* packed, int kept, const Filters& filters) {
  const int64_t panels = panels_of(filters.out_channels), size = conv3x3_winograd_packed_size(kept, filters.channels, kPanel);
  const Chunks chunks(filters.channels, kept, kept);
#pragma omp parallel for schedule(static) num_threads(filters.threads) if (filters.threads > 1)
  for (int64_t panel = 0; panel < panels; ++panel) {
    float* const to = packed + panel * size;
    if (!kept) {
      pack_panel(to, filters, panel);
      continue;
    }
    std::vector<float> plain(9 * chunks.depth * kPanel);
    pack_panel(plain.data(), filters, panel);
    for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
      const auto transform = kept == 4 ? transform_filters<4> : transform_filters<2>;
      transform(to + chunk * chunks.transformed, chunks.point, plain.data() + chunk * chunks.plain, chunks.size(chunk));
    }
  }
}

// Where tiles lie: `results` squared results each, in the order of the images, rows and columns.
struct Tiles {
  int64_t across, an_image, all;

  Tiles(const Convolution& conv, int results)
      : across((conv.width + results - 1) / results),
        an_image(across * ((conv.height + results - 1) / results)),
        all(an_image * conv.images) {}
};

// Gathers the (kResults + 2) squared inputs of a tile, passes them through a ReLU with `kRelu`, and transforms them:
// values[point * stride + channel].
template <int kResults, bool kRelu>
void transform_inputs(float* values, int64_t stride, const Convolution& conv, const Tiles& tiles, int64_t tile, const float* zeros) {
  constexpr int kPoints = kResults + 2;
  const int64_t image = tile / tiles.an_image, place = tile % tiles.an_image;
  const int64_t top = place / tiles.across * kResults - 1, left = place % tiles.across * kResults - 1;
  const int zoom = conv.upsample ? 1 : 0;
  const int64_t width = conv.width >> zoom, height = conv.height >> zoom;
  const float *at[kPoints][kPoints], *offsets[kPoints][kPoints];  // outside of the image there are zeros, which no offset moves
  for (int i = 0; i < kPoints; ++i) {
    for (int j = 0; j < kPoints; ++j) {
      const int64_t row = top + i, column = left + j;
      const bool inside = row >= 0 && row < conv.height && column >= 0 && column < conv.width;
      at[i][j] = inside ? conv.x + ((image * height + (row >> zoom)) * width + (column >> zoom)) * conv.channels : zeros;
      if (kRelu) offsets[i][j] = inside && conv.relu.offset ? conv.relu.offset : zeros;
    }
  }
  for (int64_t channel = 0; channel < conv.channels; channel += kLanes) {
    const int64_t count = conv.channels - channel;
    const Vector slope = kRelu && conv.relu.slope ? load(conv.relu.slope + channel, count) : Vector{} + 1.0f;
    Vector columns[kPoints][kPoints];  // [column][point]
#pragma GCC unroll 6
    for (int j = 0; j < kPoints; ++j) {
      Vector column[kPoints];
#pragma GCC unroll 6
      for (int i = 0; i < kPoints; ++i) {
        column[i] = load(at[i][j] + channel, count);
        if (kRelu) column[i] = relu(column[i] * slope + load(offsets[i][j] + channel, count));
      }
      Winograd<kResults>::input(column, columns[j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) {
      Vector row[kPoints], points[kPoints];
#pragma GCC unroll 6
      for (int j = 0; j < kPoints; ++j) row[j] = columns[j][i];
      Winograd<kResults>::input(row, points);
#pragma GCC unroll 6
      for (int j = 0; j < kPoints; ++j) store(values + (i * kPoints + j) * stride + channel, points[j]);
    }
  }
}

// The gradient `y` behind relu(slope x + offset): let through where that is positive.
PURIFY_INLINE Vector behind(const Relu& relu, Vector y, int64_t place, int64_t channel, int64_t count) {
  const Vector x = load(relu.x + place, count);
  if (!relu.slope) return x <= 0.0f ? Vector{} : y;
  const Vector slope = load(relu.slope + channel, count), affine = x * slope + load(relu.offset + channel, count);
  return affine <= 0.0f ? Vector{} : y * slope;
}

// What follows the convolution at one place: gain (residual + y + bias + temb), y behind a ReLU where its gradient is asked for.
PURIFY_INLINE Vector finished(const Convolution& conv, Vector y, Vector shift, int64_t place, int64_t channel, int64_t count) {
  y += shift;
  if (conv.relu.x) y = behind(conv.relu, y, place, channel, count);
  if (conv.residual) y += load(conv.residual + place, count);
  return y * conv.gain;
}

// Transforms a tile's products back, for `count` channels from `first`, and stores its results, as many as lie in the image.
template <int kResults>
void transform_outputs(const Convolution& conv, const Tiles& tiles, int64_t tile, const float* products, int64_t stride, int64_t first,
                       int64_t count) {
  constexpr int kPoints = kResults + 2;
  const int64_t image = tile / tiles.an_image, place = tile % tiles.an_image;
  const int64_t top = place / tiles.across * kResults, left = place % tiles.across * kResults;
  const int64_t rows = std::min<int64_t>(kResults, conv.height - top), columns = std::min<int64_t>(kResults, conv.width - left);
  const int64_t corner = ((image * conv.height + top) * conv.width + left) * conv.out_channels;
  for (int64_t channel = 0; channel < count; channel += kLanes) {
    const int64_t here = first + channel, lanes = count - channel;
    Vector shift = {};
    if (conv.bias) shift += load(conv.bias + here, lanes);
    if (conv.temb) shift += load(conv.temb + image * conv.temb_stride + here, lanes);
    Vector half[kPoints][kResults];  // [column of points][row of results]
#pragma GCC unroll 6
    for (int j = 0; j < kPoints; ++j) {
      Vector points[kPoints];
#pragma GCC unroll 6
      for (int i = 0; i < kPoints; ++i) points[i] = load(products + (i * kPoints + j) * stride + channel);
      Winograd<kResults>::output(points, half[j]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kResults; ++i) {
      if (i >= rows) break;
      Vector points[kPoints], results[kResults];
#pragma GCC unroll 6
      for (int j = 0; j < kPoints; ++j) points[j] = half[j][i];
      Winograd<kResults>::output(points, results);
      const int64_t start = corner + i * conv.width * conv.out_channels + here;
#pragma GCC unroll 4
      for (int j = 0; j < kResults; ++j) {
        if (j >= columns) break;
        const int64_t to = start + j * conv.out_channels;
        store(conv.y + to, finished(conv, results[j], shift, to, here, lanes), lanes);
      }
    }
  }
}

// The buffers: transformed inputs of a block [points][tiles][channels], which threads may share; and of each thread a chunk of
// transformed filters and its products [points][tiles][panel].
struct Buffers {
  int64_t row, point, product_row, product_point, inputs, filters, products;

  Buffers(const Convolution& conv, const Chunks& chunks, int64_t block, int points) {
    row = rounded_up(conv.channels, kLanes) + kApart;
    point = rounded_up(block * row + kApart, kApart);
    product_row = kPanel + kApart;
    product_point = rounded_up(block * product_row + kApart, kApart);
    inputs = points * point;
    filters = conv.kept ? 0 : chunks.transformed;
    products = points * product_point;
  }
};

// Memory of the calling thread, kept for its next call: large blocks would go back to the system, and come back as zeroed pages.
float* scratch(int64_t size) {
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<float, Free> memory;
  thread_local int64_t has = 0;
  if (has < size) {
    has = 0;
    memory.reset();
    memory.reset(static_cast<float*>(std::aligned_alloc(64, rounded_up(size * sizeof(float), 64))));
    if (!memory) throw std::bad_alloc();
    has = size;
  }
  return memory.get();
}

// A block's results for one panel of channels.
template <int kResults>
void multiply_panels(const Convolution& conv, const Tiles& tiles, const Chunks& chunks, const Buffers& sizes, const float* inputs,
                     float* filters, float* products, int64_t first_tile, int64_t count, int64_t panel) {
  constexpr int kSquare = (kResults + 2) * (kResults + 2);
  const float* packed = conv.packed + panel * (conv.kept ? chunks.count() * chunks.transformed : 9 * chunks.depth * kPanel);
  for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
    const int64_t deep = chunks.size(chunk), next = conv.kept ? deep * kPanel : 9 * deep * kPanel / kSquare;  // floats to fetch ahead
    if (!conv.kept) transform_filters<kResults>(filters, chunks.point, packed + chunk * chunks.plain, deep);
    const float* const weights = conv.kept ? packed + chunk * chunks.transformed : filters;
    const auto multiply = chunk ? multiply_panel<true> : multiply_panel<false>;
    for (int point = 0; point < kSquare; ++point) {
      const float* rows = inputs + point * sizes.point + chunk * chunks.channels;
      const float* ahead = conv.kept ? weights + (point + 1) * chunks.point : packed + (chunk + 1) * chunks.plain + point * next;
      multiply(products + point * sizes.product_point, sizes.product_row, rows, sizes.row, count, weights + point * chunks.point, deep,
               ahead, next / kLine);
    }
  }
  const int64_t first = panel * kPanel, channels = std::min<int64_t>(kPanel, conv.out_channels - first);
  for (int64_t t = 0; t < count; ++t)
    transform_outputs<kResults>(conv, tiles, first_tile + t, products + t * sizes.product_row, sizes.product_point, first, channels);
}

template <int kResults>
void convolve(const Convolution& conv) {
  constexpr int kSquare = (kResults + 2) * (kResults + 2);
  const Tiles tiles(conv, kResults);
  const int64_t panels = panels_of(conv.out_channels);
  // As many tiles a block as asked for at most, and the same number of blocks for every thread. Where that leaves a thread few tiles,
  // the threads share every block, each with panels of its own.
  const int64_t turns = (tiles.all + conv.threads * conv.block - 1) / (conv.threads * conv.block);
  const int64_t share = (tiles.all + conv.threads * turns - 1) / (conv.threads * turns);
  const bool alone = conv.threads == 1 || 2 * share > conv.block || panels < conv.threads;
  const int64_t block = alone ? share : std::min(tiles.all, conv.block), blocks = (tiles.all + block - 1) / block;
  const Chunks chunks(conv.channels, kResults, conv.kept);
  const Buffers sizes(conv, chunks, block, kSquare);
  const int64_t zeros_size = rounded_up(conv.channels, kApart), all_inputs = sizes.inputs * (alone ? conv.threads : 1);
  const int64_t own = sizes.filters + sizes.products;
  const auto transform = conv.relu.before ? transform_inputs<kResults, true> : transform_inputs<kResults, false>;
  float* const zeros = scratch(zeros_size + all_inputs + own * conv.threads);
  std::fill(zeros, zeros + zeros_size, 0.0f);
#pragma omp parallel num_threads(conv.threads) if (conv.threads > 1)
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    float* const inputs = zeros + zeros_size + (alone ? thread : 0) * sizes.inputs;
    float* const filters = zeros + zeros_size + all_inputs + thread * own;
    float* const products = filters + sizes.filters;
    for (int64_t b = alone ? thread : 0; b < blocks; b += alone ? threads : 1) {
      const int64_t first = b * block, count = std::min(block, tiles.all - first);
      for (int64_t t = alone ? 0 : thread; t < count; t += alone ? 1 : threads)
        transform(inputs + t * sizes.row, sizes.point, conv, tiles, first + t, zeros);
      if (!alone) {
#pragma omp barrier
      }
      const int64_t from = alone ? 0 : panels * thread / threads, to = alone ? panels : panels * (thread + 1) / threads;
      for (int64_t panel = from; panel < to; ++panel)
        multiply_panels<kResults>(conv, tiles, chunks, sizes, inputs, filters, products, first, count, panel);
      if (!alone) {
#pragma omp barrier
      }
    }
  }
}

void conv3x3_winograd(int results, const Convolution& conv) {
  if (conv.images * conv.height * conv.width * conv.out_channels == 0) return;
  results == 4 ? convolve<4>(conv) : convolve<2>(conv);
}

}  // namespace purify::PURIFY_ISA
