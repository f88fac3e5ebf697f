// SPDX-License-Identifier: Apache-2.0
// From a stored dimension at run time to its kernels.
#include "cuda/append/per_dim.h"

#include <algorithm>
#include <iterator>

#include "cuda/append/instances.h"

namespace tq {
namespace cuda {
namespace {

// visit(std::integral_constant-like tag) for the dimension among kAppendInstances.
template <size_t kIndex = 0, typename Visit>
void with_stored(int stored, Visit visit) {
  if constexpr (kIndex < std::size(kAppendInstances)) {
    constexpr int kStored = kAppendInstances[kIndex].stored;
    if (stored == kStored) return visit(static_cast<PerDim<kStored>*>(nullptr));
    with_stored<kIndex + 1>(stored, visit);
  } else {
    throw Error(Status::kInternal, "stored dimension %d has no kernels", stored);
  }
}

constexpr int64_t kReadCtasPerUnit = 16;

}  // namespace

void launch_append(int stored, const AppendArguments& given, int64_t units, int num_units,
                   cudaStream_t stream) {
  AppendArguments arguments = given;
  arguments.zones[0] = !given.layer.key.layout.raw() && zones_apart(given.layer.key.book);
  arguments.zones[1] = !given.layer.value.layout.raw() && zones_apart(given.layer.value.book);
  // At least one CTA a multiprocessor: a graph captured on a small plan may be replayed on a large one.
  const int64_t grid = std::min(std::max<int64_t>(units, num_units),
                                static_cast<int64_t>(append_ctas_per_unit(stored)) * num_units);
  with_stored(stored, [&](auto* dim) { dim->append(arguments, static_cast<unsigned>(grid), stream); });
}

void launch_read(int stored, const ReadArguments& arguments, int num_units, cudaStream_t stream) {
  const int64_t jobs =
      static_cast<int64_t>(arguments.count) * arguments.layer.num_kv_heads * arguments.num_kinds;
  const int64_t grid = std::min((jobs + kReadWarps - 1) / kReadWarps, kReadCtasPerUnit * num_units);
  with_stored(stored, [&](auto* dim) { dim->read(arguments, static_cast<unsigned>(grid), stream); });
}

void require_kernels(int stored) {
  with_stored(stored, [](auto* dim) { dim->require(); });
}

}  // namespace cuda
}  // namespace tq
