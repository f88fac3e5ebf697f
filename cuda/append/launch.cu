// SPDX-License-Identifier: Apache-2.0
// From a stored dimension at run time to its append kernel.
#include "cuda/append/launch.h"

#include <algorithm>

#include "cuda/code/zones.h"
#include "cuda/dispatch.h"

namespace tq::cuda::append {

void launch_append(int stored, const AppendParams& given, int64_t units, int num_units, bool early,
                   cudaStream_t stream) {
  AppendParams params = given;
  params.zones[0] = has_book(given.layer.key.layout) && code::zones_apart(given.layer.key.book);
  params.zones[1] = has_book(given.layer.value.layout) && code::zones_apart(given.layer.value.book);
  // At least one CTA a multiprocessor: a graph captured on a small plan may be replayed on a large one.
  const int64_t grid =
      std::min(std::max<int64_t>(units, num_units), static_cast<int64_t>(ctas_per_unit(stored)) * num_units);
  const bool turned = given.layer.key_matrix && given.first_kind == 0;
  with_stored<kAppendInstances>(stored, [&](auto dim) {
    (turned ? TurnedAppend<decltype(dim)::value>::start : AppendKernel<decltype(dim)::value>::start)(
        params, static_cast<unsigned>(grid), early, stream);
  });
}

void require_kernels(int stored) {
  with_stored<kAppendInstances>(stored, [](auto dim) {
    AppendKernel<decltype(dim)::value>::require();
    TurnedAppend<decltype(dim)::value>::require();
  });
}

}  // namespace tq::cuda::append
