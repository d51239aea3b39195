// purify_engine._C: the ops over bare pointers. It knows no torch, so it builds in seconds and fits any version of it.
//
// Pointers arrive as integers, checked and contiguous (purify_engine/ops/_extension.py). The thread count is an argument, because OpenMP's own
// setting belongs to the calling thread. The GIL is released while an op runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <iterator>
#include <stdexcept>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "ops.h"

namespace py = pybind11;

namespace {

using purify::Batch;
using purify::BFloat16;
using purify::Convolution;
using purify::Filters;
using purify::Norm;
using purify::NormGrads;
using purify::Row;

enum class Isa { portable, avx2, avx512 };
const char* const kNames[] = {"portable", "avx2", "avx512"};

Isa best_isa() {
#ifdef PURIFY_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

std::atomic<Isa> isa{best_isa()};

std::vector<std::string> instruction_sets() {
  const int best = static_cast<int>(best_isa());
  return {std::make_reverse_iterator(kNames + best + 1), std::make_reverse_iterator(kNames)};
}

std::string instruction_set() { return kNames[static_cast<int>(isa.load())]; }

void use_instruction_set(const std::string& name) {
  for (int offered = 0; offered <= static_cast<int>(best_isa()); ++offered) {
    if (kNames[offered] != name) continue;
    isa = static_cast<Isa>(offered);
    return;
  }
  throw std::invalid_argument("instruction set must be one that this CPU offers, got " + name);
}

// The ops that wider vectors do not help stop at AVX2.
#ifdef PURIFY_X86
#define PURIFY_RUN(op, ...) (isa.load() == Isa::portable ? purify::portable::op(__VA_ARGS__) : purify::avx2::op(__VA_ARGS__))
#define PURIFY_RUN_WIDE(op, ...) (isa.load() == Isa::avx512 ? purify::avx512::op(__VA_ARGS__) : PURIFY_RUN(op, __VA_ARGS__))
#else
#define PURIFY_RUN(op, ...) purify::portable::op(__VA_ARGS__)
#define PURIFY_RUN_WIDE(op, ...) PURIFY_RUN(op, __VA_ARGS__)
#endif

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The key of all images, or (keys, stride): one for each.
using KeyArguments = std::variant<uintptr_t, std::tuple<uintptr_t, int64_t>>;

// (images, numel, key, step, ids, threads), as Python hands it over.
using BatchArguments = std::tuple<int64_t, int64_t, KeyArguments, uintptr_t, uintptr_t, int>;

Batch batch_of(const BatchArguments& given) {
  const auto& [images, numel, key, step, ids, threads] = given;
  const auto* each = std::get_if<1>(&key);
  const auto [keys, stride] = each ? *each : std::tuple<uintptr_t, int64_t>{std::get<0>(key), 0};
  return {images, numel, pointer<int64_t>(keys), stride, pointer<int64_t>(step), pointer<int64_t>(ids), threads};
}

// (x, weight, bias, scale, shift, images, channels, pixels, groups, norm_eps, silu, threads).
using NormArguments = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, int64_t, int64_t, double, bool, int>;

template <typename T, typename S = T>
Norm<T, S> norm_of(const NormArguments& given) {
  const auto& [x, weight, bias, scale, shift, images, channels, pixels, groups, norm_eps, silu, threads] = given;
  return {pointer<S>(x), pointer<T>(weight), pointer<T>(bias), pointer<T>(scale), pointer<T>(shift), images, channels,
          pixels,        groups,             norm_eps,         silu,              threads};
}

Row row_at(const double* rows, int64_t num_rows, int64_t step) {
  if (step < 0 || step >= num_rows)
    throw std::out_of_range("step must be in [0, " + std::to_string(num_rows) + "), got " + std::to_string(step));
  const double* row = rows + 4 * step;
  return {row[0], row[1], row[2], row[3]};
}

std::array<uint32_t, 4> philox_block(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
  std::array<uint32_t, 4> words;
  PURIFY_RUN(philox_block, words.data(), counter.data(), key.data());
  return words;
}

void philox(uintptr_t out, const BatchArguments& batch) { PURIFY_RUN(philox_words, pointer<int64_t>(out), batch_of(batch)); }

template <typename T>
void philox_normal(uintptr_t out, const BatchArguments& batch) {
  PURIFY_RUN(philox_normal, pointer<T>(out), batch_of(batch));
}

template <typename T>
void q_sample(uintptr_t x_t, uintptr_t x_start, uintptr_t marginal, const BatchArguments& batch) {
  PURIFY_RUN(q_sample, pointer<T>(x_t), pointer<const T>(x_start), pointer<const double>(marginal), batch_of(batch));
}

template <typename T>
void guided_step(uintptr_t x_next, uintptr_t x_t, uintptr_t eps, uintptr_t grad, uintptr_t rows, int64_t num_rows,
                 const BatchArguments& given) {
  const Batch batch = batch_of(given);
  const Row row = row_at(pointer<const double>(rows), num_rows, *batch.step);
  PURIFY_RUN(guided_step, pointer<T>(x_next), pointer<const T>(x_t), pointer<const T>(eps), pointer<const T>(grad), row, batch);
}

template <typename T>
void group_norm_silu(uintptr_t y, const NormArguments& norm) {
  PURIFY_RUN(group_norm_silu, pointer<T>(y), norm_of<T>(norm));
}

template <typename T>
void group_norm_silu_backward(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t scale, uintptr_t shift, uintptr_t grad_out,
                              const NormArguments& norm) {
  const NormGrads<T> grads{pointer<T>(x), pointer<T>(weight), pointer<T>(bias), pointer<T>(scale), pointer<T>(shift)};
  PURIFY_RUN(group_norm_silu_backward, grads, pointer<const T>(grad_out), norm_of<T>(norm));
}

template <typename S>
void group_norm_silu_nhwc(uintptr_t y, const NormArguments& norm, uintptr_t skip, int64_t own) {
  PURIFY_RUN_WIDE(group_norm_silu_nhwc, pointer<S>(y), norm_of<float, S>(norm), pointer<const S>(skip), own);
}

template <typename S>
void group_norm_silu_nhwc_backward(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t scale, uintptr_t shift, uintptr_t grad_out,
                                   const NormArguments& given) {
  const NormGrads<float, S> grads{pointer<S>(x), pointer<float>(weight), pointer<float>(bias), pointer<float>(scale), pointer<float>(shift)};
  const Norm<float, S> norm = norm_of<float, S>(given);
  PURIFY_RUN_WIDE(group_norm_silu_nhwc_backward, grads, pointer<const S>(grad_out), norm);
}

int64_t conv3x3_winograd_packed_size(int kept, int64_t channels, int64_t out_channels) {
  return PURIFY_RUN_WIDE(conv3x3_winograd_packed_size, kept, channels, out_channels);
}

// (weight, channels, out_channels, stride, out_stride, flip, threads).
using FilterArguments = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t, bool, int>;

void conv3x3_winograd_pack(uintptr_t packed, int kept, const FilterArguments& given) {
  const auto& [weight, channels, out_channels, stride, out_stride, flip, threads] = given;
  const Filters filters{pointer<const float>(weight), channels, out_channels, stride, out_stride, flip, threads};
  PURIFY_RUN_WIDE(conv3x3_winograd_pack, pointer<float>(packed), kept, filters);
}

// (x, packed, bias, temb, residual), (x, slope, offset, before) of a ReLU, then (images, height, width, channels, out_channels, temb_stride).
using ConvolutionPointers = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;
using ReluArguments = std::tuple<uintptr_t, uintptr_t, uintptr_t, bool>;
using ConvolutionSizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

void conv3x3_winograd(uintptr_t y, const ConvolutionPointers& pointers, const ReluArguments& relu, const ConvolutionSizes& sizes, float gain,
                      bool upsample, int results, bool kept, int64_t block, int threads) {
  const auto& [x, packed, bias, temb, residual] = pointers;
  const auto& [relu_x, slope, offset, before] = relu;
  const auto& [images, height, width, channels, out_channels, temb_stride] = sizes;
  const Convolution conv{pointer<float>(y),
                         pointer<const float>(x),
                         pointer<const float>(packed),
                         pointer<const float>(bias),
                         pointer<const float>(temb),
                         pointer<const float>(residual),
                         {pointer<const float>(relu_x), pointer<const float>(slope), pointer<const float>(offset), before},
                         images,
                         height,
                         width,
                         channels,
                         out_channels,
                         temb_stride,
                         block,
                         gain,
                         upsample,
                         kept,
                         threads};
  PURIFY_RUN_WIDE(conv3x3_winograd, results, conv);
}

template <typename T>
void define_ops(py::module_& module, const std::string& dtype) {
  const auto released = py::call_guard<py::gil_scoped_release>();
  const auto define = [&](const char* op, auto function) { module.def((op + ("_" + dtype)).c_str(), function, released); };
  define("philox_normal", &philox_normal<T>);
  define("q_sample", &q_sample<T>);
  define("guided_step", &guided_step<T>);
  define("group_norm_silu", &group_norm_silu<T>);
  define("group_norm_silu_backward", &group_norm_silu_backward<T>);
}

// Of images stored in S, which are computed on in float.
template <typename S>
void define_nhwc_ops(py::module_& module, const std::string& dtype) {
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def(("group_norm_silu_nhwc_" + dtype).c_str(), &group_norm_silu_nhwc<S>, released);
  module.def(("group_norm_silu_nhwc_backward_" + dtype).c_str(), &group_norm_silu_nhwc_backward<S>, released);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The C++ extension of purify_engine.ops: bare pointers, no checks. Use purify_engine.ops.";
  module.attr("INTERFACE") = 6;  // purify_engine/ops/_extension.py refuses an extension built for another
  module.def("instruction_sets", &instruction_sets, "What this CPU offers, best first.");
  module.def("instruction_set", &instruction_set, "What the ops run on.");
  module.def("use_instruction_set", &use_instruction_set, "Run the ops on another of instruction_sets().");
  module.def("philox_block", &philox_block, "Philox 4x32-10 of one counter, for its known answers.");
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def("philox", &philox, released);
  define_nhwc_ops<float>(module, "float32");
  define_nhwc_ops<BFloat16>(module, "bfloat16");
  module.def("conv3x3_winograd_packed_size", &conv3x3_winograd_packed_size, "Floats of packed filters, for this instruction set.");
  module.def("conv3x3_winograd_pack", &conv3x3_winograd_pack, released);
  module.def("conv3x3_winograd", &conv3x3_winograd, released);
  define_ops<float>(module, "float32");
  define_ops<double>(module, "float64");
}
