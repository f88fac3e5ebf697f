// SPDX-License-Identifier: Apache-2.0
// See reserved_space.h. A piece's handle is released as soon as it is mapped: the mapping keeps the memory.
#include "cuda/reserved_space.h"

#include <inttypes.h>

#include <utility>

namespace tq {
namespace cuda {
namespace {

CUmemAllocationProp properties_of(int device) {
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  return properties;
}

// The way back of a failed call: what fails here too has no other remedy.
void ignore(cudaError_t error) {
  if (error != cudaSuccess) runtime().get_last_error();
}

}  // namespace

bool may_reserve(int device) {
  int value = 0;
  const cudaError_t error =
      runtime().driver_attribute(&value, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device);
  if (error == cudaErrorNotSupported) return false;
  check_cuda(error, "cuDeviceGetAttribute");
  return value != 0;
}

int64_t memory_granularity(int device) {
  const CUmemAllocationProp properties = properties_of(device);
  size_t bytes = 0;
  check_cuda(runtime().memory_granularity(&bytes, &properties), "cuMemGetAllocationGranularity");
  return static_cast<int64_t>(bytes);
}

ReservedSpace::ReservedSpace(int device, int64_t bytes) : device_(device) {
  const cudaError_t error = runtime().address_reserve(&address_, static_cast<size_t>(bytes));
  if (error != cudaSuccess) address_ = 0;
  TQ_CHECK(status_of(error) != Status::kOutOfMemory, Status::kOutOfMemory,
           "max_reserve_tokens: could not reserve addresses for %" PRId64 " bytes on CUDA device %d", bytes,
           device);
  check_cuda(error, "cuMemAddressReserve");
  bytes_ = static_cast<size_t>(bytes);
}

ReservedSpace::~ReservedSpace() {
  unmap_since(0);
  if (address_) ignore(runtime().address_free(address_, bytes_));
}

void ReservedSpace::swap(ReservedSpace& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(address_, other.address_);
  std::swap(bytes_, other.bytes_);
  std::swap(pieces_, other.pieces_);
}

void ReservedSpace::map(int64_t offset, int64_t size) {
  const Piece piece = {address_ + static_cast<CUdeviceptr>(offset), static_cast<size_t>(size)};
  pieces_.reserve(pieces_.size() + 1);  // what allocates comes first
  const CUmemAllocationProp properties = properties_of(device_);
  CUmemGenericAllocationHandle memory;
  const cudaError_t error = runtime().memory_create(&memory, piece.bytes, &properties);
  if (status_of(error) == Status::kOutOfMemory) {
    runtime().get_last_error();
    throw Error(Status::kOutOfMemory,
                "max_tokens: pages: could not allocate %" PRId64 " bytes on CUDA device %d", size, device_);
  }
  check_cuda(error, "cuMemCreate");
  const cudaError_t mapped = runtime().memory_map(piece.address, piece.bytes, memory);
  ignore(runtime().memory_release(memory));
  check_cuda(mapped, "cuMemMap");
  pieces_.push_back(piece);
  CUmemAccessDesc access = {};
  access.location = properties.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  const cudaError_t accessible = runtime().memory_set_access(piece.address, piece.bytes, &access);
  if (accessible != cudaSuccess) unmap_since(pieces_.size() - 1);
  check_cuda(accessible, "cuMemSetAccess");
}

void ReservedSpace::unmap_since(size_t num_pieces) noexcept {
  for (; pieces_.size() > num_pieces; pieces_.pop_back())
    ignore(runtime().memory_unmap(pieces_.back().address, pieces_.back().bytes));
}

}  // namespace cuda
}  // namespace tq
