// CUDA's half precision on a CPU: IEEE binary16, rounded to the nearest even number.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7FFFu;
  uint32_t bits = rest << 13;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  number *= 0x1p112f;  // the exponents' biases are 112 apart; subnormals become right as well
  std::memcpy(&bits, &number, sizeof bits);
  bits = (rest >= 0x7C00u ? 0x7F800000u | rest << 13 : bits) | sign;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

inline __half __float2half_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7FFFFFFFu;
  if (rest > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u)};
  if (rest >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00u)};  // 65520 and more
  if (rest >= 0x38800000u) {                                               // 2^-14 and more: normal
    const uint32_t rounded = rest + 0xFFFu + (rest >> 13 & 1u);
    return {static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13)};
  }
  float magnitude;
  std::memcpy(&magnitude, &rest, sizeof magnitude);
  magnitude += 0.5f;  // its last bit now counts 2^-24, as that of a subnormal half does: the sum is rounded as it should be
  std::memcpy(&bits, &magnitude, sizeof bits);
  return {static_cast<uint16_t>(sign | (bits - 0x3F000000u))};
}
