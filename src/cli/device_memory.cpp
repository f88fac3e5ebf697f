// SPDX-License-Identifier: Apache-2.0
//
// See device_memory.h. Entry points of the CUDA driver API by name; the _v2 forms are the 64-bit ones that
// its header maps the plain names to.
#include "cli/device_memory.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "cli/library.h"

namespace tq::cli {
namespace {

class HostMemory : public DeviceMemory {
 public:
  void* allocate(size_t bytes) override {
    void* pointer = std::malloc(bytes > 0 ? bytes : 1);
    if (pointer == nullptr) throw std::bad_alloc();
    return pointer;
  }
  void release(void* pointer) noexcept override { std::free(pointer); }
  void upload(void* device, const void* host, size_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
  }
  void download(void* host, const void* device, size_t bytes) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }
  void synchronize() override {}
};

class CudaMemory : public DeviceMemory {
 public:
  explicit CudaMemory(int32_t device_id) {
    library_ = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library_ == nullptr)
      throw LibraryError(std::string("the CUDA driver cannot be loaded: ") + dlerror());
    int device = 0;
    void* context = nullptr;
    check(entry<int(unsigned)>("cuInit")(0), "cuInit");
    check(entry<int(int*, int)>("cuDeviceGet")(&device, device_id), "cuDeviceGet");
    check(entry<int(void**, int)>("cuDevicePrimaryCtxRetain")(&context, device), "cuDevicePrimaryCtxRetain");
    device_ = device;
    check(entry<int(void*)>("cuCtxSetCurrent")(context), "cuCtxSetCurrent");
    allocate_ = entry<int(uint64_t*, size_t)>("cuMemAlloc_v2");
    free_ = entry<int(uint64_t)>("cuMemFree_v2");
    upload_ = entry<int(uint64_t, const void*, size_t)>("cuMemcpyHtoD_v2");
    download_ = entry<int(void*, uint64_t, size_t)>("cuMemcpyDtoH_v2");
    synchronize_ = entry<int()>("cuCtxSynchronize");
  }
  ~CudaMemory() override {
    if (auto* const release = reinterpret_cast<int (*)(int)>(dlsym(library_, "cuDevicePrimaryCtxRelease_v2")))
      release(device_);
  }
  void* allocate(size_t bytes) override {
    uint64_t address = 0;
    check(allocate_(&address, bytes > 0 ? bytes : 1), "cuMemAlloc");
    // NOLINTNEXTLINE(performance-no-int-to-ptr): a CUdeviceptr is an integer
    return reinterpret_cast<void*>(address);
  }
  void release(void* pointer) noexcept override { free_(reinterpret_cast<uint64_t>(pointer)); }
  void upload(void* device, const void* host, size_t bytes) override {
    if (bytes > 0) check(upload_(reinterpret_cast<uint64_t>(device), host, bytes), "cuMemcpyHtoD");
  }
  void download(void* host, const void* device, size_t bytes) override {
    if (bytes > 0) check(download_(host, reinterpret_cast<uint64_t>(device), bytes), "cuMemcpyDtoH");
  }
  void synchronize() override { check(synchronize_(), "cuCtxSynchronize"); }

 private:
  template <typename Function>
  Function* entry(const char* name) {
    void* symbol = dlsym(library_, name);
    if (symbol == nullptr) throw LibraryError(std::string("the CUDA driver has no ") + name);
    return reinterpret_cast<Function*>(symbol);
  }
  void check(int result, const char* call) {
    if (result == 0) return;
    const char* name = nullptr;
    entry<int(int, const char**)>("cuGetErrorName")(result, &name);
    throw LibraryError(std::string(call) + ": " + (name != nullptr ? name : std::to_string(result)));
  }

  void* library_ = nullptr;  // never closed: the driver does not survive unloading
  int device_ = 0;
  int (*allocate_)(uint64_t*, size_t) = nullptr;
  int (*free_)(uint64_t) = nullptr;
  int (*upload_)(uint64_t, const void*, size_t) = nullptr;
  int (*download_)(void*, uint64_t, size_t) = nullptr;
  int (*synchronize_)() = nullptr;
};

}  // namespace

std::unique_ptr<DeviceMemory> DeviceMemory::open(int32_t device_type, int32_t device_id) {
  if (device_type == TQ_DEVICE_CUDA) return std::make_unique<CudaMemory>(device_id);
  return std::make_unique<HostMemory>();
}

}  // namespace tq::cli
