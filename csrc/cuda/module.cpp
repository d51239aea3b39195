// purify_engine._cuda: the ops on GPUs over bare pointers. It knows no torch, so it builds without it and fits any version of
// it, and it asks nothing of a GPU before the first launch.
//
// Addresses arrive as integers, checked (purify_engine/ops/_cuda.py), and so does the stream. The GIL is released while kernels
// are queued.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <variant>

#include "ops.h"

namespace py = pybind11;

namespace {

using namespace purify::cuda;

// What Python hands over: (address, dtype, channels_last) · (address, dtype, stride) · (images, channels, pixels, key, step,
// ids) · (x, weight, bias, scale, shift, images, channels, pixels, groups, norm_eps, silu, aligned) · (x, weight, bias, scale,
// shift).
using Address = uintptr_t;
using GivenImages = std::tuple<Address, int, bool>;
using GivenChannels = std::tuple<Address, int, int64_t>;
using GivenKey = std::variant<Address, std::tuple<Address, int64_t>>;  // of all images, or (keys, stride): one for each
using GivenBatch = std::tuple<int64_t, int, int, GivenKey, Address, Address>;
using GivenNorm = std::tuple<GivenImages, GivenChannels, GivenChannels, GivenChannels, GivenChannels, int64_t, int, int, int,
                             double, bool, bool>;
using GivenGrads = std::tuple<Address, GivenChannels, GivenChannels, GivenChannels, GivenChannels>;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

cudaStream_t stream_at(Address stream) { return reinterpret_cast<cudaStream_t>(stream); }

Images images_of(const GivenImages& given) {
  const auto& [data, dtype, channels_last] = given;
  return {pointer<void>(data), static_cast<Dtype>(dtype), channels_last};
}

Channels channels_of(const GivenChannels& given) {
  const auto& [data, dtype, stride] = given;
  return {pointer<void>(data), static_cast<Dtype>(dtype), stride};
}

Batch batch_of(const GivenBatch& given) {
  const auto& [images, channels, pixels, key, step, ids] = given;
  const auto* each = std::get_if<1>(&key);
  const auto [keys, stride] = each ? *each : std::tuple<Address, int64_t>{std::get<0>(key), 0};
  return {images, channels, pixels, pointer<const int64_t>(keys), pointer<const int64_t>(step), pointer<const int64_t>(ids), stride};
}

Norm norm_of(const GivenNorm& given) {
  const auto& [x, weight, bias, scale, shift, images, channels, pixels, groups, norm_eps, silu, aligned] = given;
  return {images_of(x), channels_of(weight), channels_of(bias), channels_of(scale), channels_of(shift), images,
          channels,     pixels,              groups,            norm_eps,           silu,               aligned};
}

void call_philox_block(Address stream, Address words, Address counter, Address key) {
  philox_block(stream_at(stream), pointer<uint32_t>(words), pointer<const uint32_t>(counter), pointer<const uint32_t>(key));
}

void call_philox(Address stream, Address out, const GivenBatch& batch) {
  philox(stream_at(stream), pointer<int64_t>(out), batch_of(batch));
}

void call_philox_normal(Address stream, const GivenImages& out, const GivenBatch& batch) {
  const Images images = images_of(out);
  philox_normal(stream_at(stream), images.data, images.dtype, batch_of(batch));
}

void call_q_sample(Address stream, const GivenImages& x_t, const GivenImages& x_net, const GivenImages& x_start, Address marginal,
                     const GivenBatch& batch) {
  q_sample(stream_at(stream), images_of(x_t), images_of(x_net), images_of(x_start), pointer<const double>(marginal),
           batch_of(batch));
}

void call_guided_step(Address stream, const GivenImages& x_next, const GivenImages& x_net, const GivenImages& x_t,
                      const GivenImages& eps, const GivenImages& grad, Address rows, int64_t num_rows, const GivenBatch& batch) {
  guided_step(stream_at(stream), images_of(x_next), images_of(x_net), images_of(x_t), images_of(eps), images_of(grad),
              pointer<const double>(rows), num_rows, batch_of(batch));
}

void call_group_norm_silu(Address stream, Address y, Address workspace, const GivenNorm& norm) {
  group_norm_silu(stream_at(stream), pointer<void>(y), pointer<void>(workspace), norm_of(norm));
}

void call_group_norm_silu_backward(Address stream, const GivenGrads& given, Address workspace, Address grad_out,
                                   const GivenNorm& norm) {
  const auto& [x, weight, bias, scale, shift] = given;
  const NormGrads grads{pointer<void>(x), channels_of(weight), channels_of(bias), channels_of(scale), channels_of(shift)};
  group_norm_silu_backward(stream_at(stream), grads, pointer<void>(workspace), pointer<const void>(grad_out), norm_of(norm));
}

int64_t workspace(const GivenNorm& norm) { return group_norm_silu_workspace(norm_of(norm)); }
int64_t backward_workspace(const GivenNorm& norm) { return group_norm_silu_backward_workspace(norm_of(norm)); }

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.doc() = "The CUDA extension of purify_engine.ops: bare pointers, no checks. Use purify_engine.ops.";
  module.attr("INTERFACE") = 2;  // purify_engine/ops/_cuda.py refuses an extension built for another
  module.def("philox_block", &call_philox_block, released, "Philox 4x32-10 of one counter on the device, for its known answers.");
  module.def("philox", &call_philox, released);
  module.def("philox_normal", &call_philox_normal, released);
  module.def("q_sample", &call_q_sample, released);
  module.def("guided_step", &call_guided_step, released);
  module.def("group_norm_silu", &call_group_norm_silu, released);
  module.def("group_norm_silu_backward", &call_group_norm_silu_backward, released);
  module.def("group_norm_silu_workspace", &workspace, "The bytes that its kernels leave for one another.");
  module.def("group_norm_silu_backward_workspace", &backward_workspace, "The bytes that its kernels leave for one another.");
}
