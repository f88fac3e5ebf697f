// SPDX-License-Identifier: Apache-2.0
// Tensors of torch's stable ABI as the library takes them: compared with what a call needs, refused in words
// that name the argument, never copied. The rules are those of tqkv/buffers.py.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bound.h"

namespace tq {
namespace torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using Extents = torch::headeronly::IntHeaderOnlyArrayRef;  // valid as long as what it was made of

inline std::string listed(Extents numbers) {
  std::string text = "[";
  for (size_t i = 0; i < numbers.size(); i++) text += (i ? ", " : "") + std::to_string(numbers[i]);
  return text + "]";
}

// What a shape stands for, put together in refusals only: [what] of the first dimension, then the others.
struct Meaning {
  const char *what, *others;
  std::string text() const { return (what ? std::string("[") + what + "]" : std::string()) + others; }
};

inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Double: return "float64";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::UInt64: return "uint64";
    case ScalarType::Byte: return "uint8";
    default: return "other";
  }
}
inline ScalarType scalar_type(int32_t dtype) {
  return dtype == TQ_F32 ? ScalarType::Float : dtype == TQ_F16 ? ScalarType::Half : ScalarType::BFloat16;
}
inline int32_t library_dtype(ScalarType type, const char* name) {
  for (const int32_t dtype : {TQ_F32, TQ_F16, TQ_BF16})
    if (scalar_type(dtype) == type) return dtype;
  refuse(std::string(name) + ": is of " + dtype_name(type) + ", must be of float32, float16 or bfloat16");
}

struct Device {
  int32_t type, id;
};
inline Device device_of(const Tensor& tensor) {
  return tensor.is_cpu() ? Device{TQ_DEVICE_CPU, 0} : Device{TQ_DEVICE_CUDA, tensor.get_device_index()};
}
inline std::string device_name(Device device) {
  return device.type == TQ_DEVICE_CPU ? "the CPU" : "CUDA device " + std::to_string(device.id);
}
inline void check_device(const Tensor& tensor, const char* name, Device wanted) {
  const Device found = device_of(tensor);
  if (found.type != wanted.type || found.id != wanted.id)
    refuse(std::string(name) + ": is on " + device_name(found) + ", the others are on " +
           device_name(wanted));
}
inline void check_elements(const Tensor& tensor, const char* name, ScalarType wanted) {
  if (tensor.scalar_type() != wanted)
    refuse(std::string(name) + ": has " + dtype_name(tensor.scalar_type()) + " elements, expected " +
           dtype_name(wanted));
}
inline void check_shape(const Tensor& tensor, const char* name, Extents shape, Meaning meaning) {
  const auto sizes = tensor.sizes();
  if (sizes.size() != shape.size() || !std::equal(shape.begin(), shape.end(), sizes.begin()))
    refuse(std::string(name) + ": has shape " + listed(sizes) + ", expected " + listed(shape) + " = " +
           meaning.text());
}

// Strides of a tensor [tokens][heads][dim] as the library takes them: 0 = dense.
struct Strides {
  int64_t token, head;
};
inline Strides rows(const Tensor& tensor, const char* name, Extents shape, Meaning meaning, Device device,
                    int32_t dtype) {
  check_device(tensor, name, device);
  check_elements(tensor, name, scalar_type(dtype));
  check_shape(tensor, name, shape, meaning);
  const auto strides = tensor.strides();
  if (shape[0] * shape[1] == 0) return {0, 0};
  const int64_t token = shape[0] > 1 ? strides[0] : 0, head = shape[1] > 1 ? strides[1] : 0;
  if (strides[2] != 1 || (shape[0] > 1 && token <= 0) || (shape[1] > 1 && head <= 0))
    refuse(std::string(name) + ": has strides of " + listed(strides) +
           " elements; those of tokens and heads must be above 0, the last one 1");
  return {token, head};
}
inline void* dense(const Tensor& tensor, const char* name, Extents shape, Meaning meaning, Device device,
                   ScalarType type) {
  check_device(tensor, name, device);
  check_elements(tensor, name, type);
  check_shape(tensor, name, shape, meaning);
  if (!tensor.is_contiguous())
    refuse(std::string(name) + ": must be contiguous, its strides are " + listed(tensor.strides()));
  return tensor.data_ptr();
}

inline Tensor empty(Extents shape, ScalarType type, Device device) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  const int32_t dtype =
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));  // torch's own number
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.data(), strides.data(), dtype,
      device.type == TQ_DEVICE_CPU ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda(), device.id,
      &handle));
  return Tensor(handle);
}

// torch's current stream of the device.
inline void* current_stream(Device device) {
  if (device.type == TQ_DEVICE_CPU) return nullptr;
  void* stream = nullptr;
  if (!library.cuda_stream || library.cuda_stream(device.id, &stream) != 0)
    refuse("stream: this torch has no CUDA stream of device " + std::to_string(device.id));
  return stream;
}

}  // namespace torch_ops
}  // namespace tq
