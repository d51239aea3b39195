// A small matrix product that keeps its result in registers: a few rows by one panel, two vectors wide.
#pragma once

#include <array>
#include <utility>

#include "vectors.h"

namespace purify::PURIFY_ISA {

constexpr int kPanel = 2 * kLanes;
constexpr int kMostRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 2;  // their sums fill the registers, but for what is being multiplied
constexpr int kLine = 16;   // floats of a cache line
constexpr int kUnroll = 4;  // depth is a multiple of it

// sums += rows[kRow * stride + kAt] * (left, right); `stride` is in bytes. Spelt out, since compilers keep an address for every row and
// place, and run out of registers: three rows share a base, and the rest of the address costs nothing.
template <int kRow, int kAt>
PURIFY_INLINE void multiply_add(Vector* sums, const float* base, int64_t stride, Vector left, Vector right) {
#ifdef __FMA__
#define PURIFY_MULTIPLY_ADD(address)                                       \
  Vector all;                                                              \
  asm("vbroadcastss %c[at]" address ", %[all]\n\t"                         \
      "vfmadd231ps %[left], %[all], %[one]\n\t"                            \
      "vfmadd231ps %[right], %[all], %[other]"                             \
      : [one] "+v"(sums[0]), [other] "+v"(sums[1]), [all] "=&v"(all)       \
      : [left] "v"(left), [right] "v"(right), [base] "r"(base), [stride] "r"(stride), [at] "i"(kAt * sizeof(float)))
  if constexpr (kRow == 0) {
    PURIFY_MULTIPLY_ADD("(%[base])");
  } else if constexpr (kRow == 1) {
    PURIFY_MULTIPLY_ADD("(%[base],%[stride])");
  } else {
    PURIFY_MULTIPLY_ADD("(%[base],%[stride],2)");
  }
#else
  const float value = base[kRow * stride / static_cast<int64_t>(sizeof(float)) + kAt];
  sums[0] += value * left;
  sums[1] += value * right;
#endif
}

// One place of depth, all rows.
template <int kAt, int... kRows>
PURIFY_INLINE void multiply_add_rows(Vector (*sums)[2], const float* const* bases, int64_t stride, const float* panel,
                                     std::integer_sequence<int, kRows...>) {
  const Vector left = load(panel + kAt * kPanel), right = load(panel + kAt * kPanel + kLanes);
  (multiply_add<kRows % 3, kAt>(sums[kRows], bases[kRows / 3], stride, left, right), ...);
}

// to[r][j] = (to[r][j] if `kAdd`) + sum over k of rows[r][k] * panel[k][j], for r < kRows and j < kPanel. Meanwhile `lines` cache lines
// from `ahead` on are fetched, for the product that comes next.
template <int kRows, bool kAdd>
__attribute__((noinline)) void multiply_rows(float* to, int64_t to_stride, const float* rows, int64_t row_stride, const float* panel,
                                             int64_t depth, const float* ahead, int64_t lines) {
  // The rows are read where the compiler does not see it: here it learns that memory is, before the sums exist, which it would keep
  // there for every single product to see.
  asm volatile("" : : "r"(rows) : "memory");
  // Everything that touches the sums is unrolled: else the compiler keeps them in memory.
  Vector sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) sums[r][half] = kAdd ? load(to + r * to_stride + half * kLanes) : Vector{};
  const int64_t burst = (lines * kUnroll + depth - 1) / depth;
  constexpr auto all = std::make_integer_sequence<int, kRows>();
  const int64_t stride = row_stride * static_cast<int64_t>(sizeof(float));
  const float* bases[(kRows + 2) / 3];
#pragma GCC unroll 4
  for (int base = 0; base < (kRows + 2) / 3; ++base) bases[base] = rows + 3 * base * row_stride;
  for (int64_t k = 0; k < depth; k += kUnroll, panel += kUnroll * kPanel) {
    for (int64_t line = 0; line < burst; ++line, ahead += kLine) __builtin_prefetch(ahead, 0, 2);
    multiply_add_rows<0>(sums, bases, stride, panel, all);
    multiply_add_rows<1>(sums, bases, stride, panel, all);
    multiply_add_rows<2>(sums, bases, stride, panel, all);
    multiply_add_rows<3>(sums, bases, stride, panel, all);
#pragma GCC unroll 4
    for (int base = 0; base < (kRows + 2) / 3; ++base) bases[base] += kUnroll;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) store(to + r * to_stride + half * kLanes, sums[r][half]);
}

using MultiplyRows = void (*)(float*, int64_t, const float*, int64_t, const float*, int64_t, const float*, int64_t);

template <bool kAdd, int... kRows>
constexpr std::array<MultiplyRows, sizeof...(kRows)> by_rows(std::integer_sequence<int, kRows...>) {
  return {multiply_rows<kRows + 1, kAdd>...};
}

// The same for any number of rows, in groups of nearly equal size: no group is padded.
template <bool kAdd>
void multiply_panel(float* to, int64_t to_stride, const float* rows, int64_t row_stride, int64_t count, const float* panel, int64_t depth,
                    const float* ahead, int64_t lines) {
  static constexpr auto kernels = by_rows<kAdd>(std::make_integer_sequence<int, kMostRows>());
  const int64_t groups = (count + kMostRows - 1) / kMostRows;
  for (int64_t group = 0, row = 0; group < groups; ++group) {
    const int64_t in_group = count / groups + (group < count % groups), from = lines * group / groups, to_line = lines * (group + 1) / groups;
    kernels[in_group - 1](to + row * to_stride, to_stride, rows + row * row_stride, row_stride, panel, depth, ahead + from * kLine,
                          to_line - from);
    row += in_group;
  }
}

}  // namespace purify::PURIFY_ISA
