// SPDX-License-Identifier: Apache-2.0
//
// Buffers on the device of a cache. The C API takes pointers on the cache's device and allocates none for its
// callers; for CUDA caches the tool asks the driver (libcuda.so.1, loaded at run time, primary context), so
// that it needs no CUDA toolkit to be built.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace tq::cli {

// Memory of one device. Throws LibraryError when the driver refuses.
class DeviceMemory {
 public:
  static std::unique_ptr<DeviceMemory> open(int32_t device_type, int32_t device_id);
  virtual ~DeviceMemory() = default;
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* pointer) noexcept = 0;
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual void download(void* host, const void* device, size_t bytes) = 0;
  virtual void synchronize() = 0;
};

// `count` floats; memory must outlive it.
class FloatBuffer {
 public:
  FloatBuffer(DeviceMemory& memory, size_t count)
      : memory_(memory), count_(count), data_(memory.allocate(count * sizeof(float))) {}
  FloatBuffer(DeviceMemory& memory, const std::vector<float>& host) : FloatBuffer(memory, host.size()) {
    memory_.upload(data_, host.data(), count_ * sizeof(float));
  }
  FloatBuffer(const FloatBuffer&) = delete;
  FloatBuffer& operator=(const FloatBuffer&) = delete;
  ~FloatBuffer() { memory_.release(data_); }

  void* get() const { return data_; }
  float* at(size_t index) const { return static_cast<float*>(data_) + index; }
  std::vector<float> to_host() const {
    std::vector<float> host(count_);
    memory_.download(host.data(), data_, count_ * sizeof(float));
    return host;
  }

 private:
  DeviceMemory& memory_;
  size_t count_;
  void* data_;
};

}  // namespace tq::cli
