// The one-dimensional transforms of Winograd's minimal filtering F(m, 3) (Winograd 1980; Lavin & Gray 2016). Applied to columns and then
// to rows, they turn a 3x3 convolution into m + 2 squared products a tile of m x m results, where the direct way has 9 m squared.
//
// y = output((weights(g)) * (input(d))): d are m + 2 neighbours, g the three taps, y the m results; * is elementwise.
#pragma once

#include "vectors.h"

namespace purify::PURIFY_ISA {

template <int kResults>
struct Winograd;

// F(2, 3): points 0, 1, -1 and infinity; 2.25 times fewer multiplications.
template <>
struct Winograd<2> {
  template <typename T>
  static PURIFY_INLINE void input(const T* d, T* t) {
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = d[1] - d[3];
  }

  template <typename T>
  static PURIFY_INLINE void weights(const T* g, T* t) {
    const T even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
    t[0] = g[0];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = g[2];
  }

  template <typename T>
  static PURIFY_INLINE void output(const T* m, T* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

// F(4, 3): points 0, +-p, +-q and infinity; 4 times fewer multiplications. With p = 5/8 and q = 3/2 the error is half of what the usual
// 1 and 2 give.
template <>
struct Winograd<4> {
  static constexpr double p = 0.625, q = 1.5, p2 = p * p, q2 = q * q;

  template <typename T>
  static PURIFY_INLINE void input(const T* d, T* t) {
    const float sum = p2 + q2, product = p2 * q2;
    const T even_p = d[4] - float(q2) * d[2], odd_p = float(p) * (d[3] - float(q2) * d[1]);
    const T even_q = d[4] - float(p2) * d[2], odd_q = float(q) * (d[3] - float(p2) * d[1]);
    t[0] = product * d[0] + (d[4] - sum * d[2]);
    t[1] = even_p + odd_p;
    t[2] = even_p - odd_p;
    t[3] = even_q + odd_q;
    t[4] = even_q - odd_q;
    t[5] = product * d[1] + (d[5] - sum * d[3]);
  }

  template <typename T>
  static PURIFY_INLINE void weights(const T* g, T* t) {
    constexpr double by_p = 1 / (2 * p2 * (p2 - q2)), by_q = 1 / (2 * q2 * (q2 - p2));
    const T even_p = float(by_p) * g[0] + float(by_p * p2) * g[2], odd_p = float(by_p * p) * g[1];
    const T even_q = float(by_q) * g[0] + float(by_q * q2) * g[2], odd_q = float(by_q * q) * g[1];
    t[0] = float(1 / (p2 * q2)) * g[0];
    t[1] = even_p + odd_p;
    t[2] = even_p - odd_p;
    t[3] = even_q + odd_q;
    t[4] = even_q - odd_q;
    t[5] = g[2];
  }

  template <typename T>
  static PURIFY_INLINE void output(const T* m, T* y) {
    const T even_p = m[1] + m[2], odd_p = m[1] - m[2], even_q = m[3] + m[4], odd_q = m[3] - m[4];
    y[0] = m[0] + even_p + even_q;
    y[1] = float(p) * odd_p + float(q) * odd_q;
    y[2] = float(p2) * even_p + float(q2) * even_q;
    y[3] = float(p * p2) * odd_p + (float(q * q2) * odd_q + m[5]);
  }
};

}  // namespace purify::PURIFY_ISA
