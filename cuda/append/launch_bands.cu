// SPDX-License-Identifier: Apache-2.0
// See launch_bands.h.
#include "cuda/append/launch_bands.h"

#include <algorithm>

#include "cuda/append/bands.cuh"
#include "cuda/runtime.h"

namespace tq::cuda::append {

void launch_append_bands(const AppendParams& given, int64_t tiles, int num_units, bool early,
                         cudaStream_t stream) {
  AppendParams params = given;
  const format::SideLayout& key = params.layer.key.layout;
  const int bands = key.num_bands();
  params.first_kind = 0;
  params.num_kinds = 1;
  params.per_tile = FastDivisor(static_cast<uint32_t>(params.layer.num_kv_heads * bands));
  bool trellis = false;
  for (int band = 0; band < bands; band++) trellis = trellis || format::band_code(key.code(), band).trellis();
  const int shared = trellis ? trellis_shared_bytes<kBand>() : 0;
  // At least one CTA a multiprocessor: a graph captured on a small plan may be replayed on a large one.
  const int64_t wanted = (tiles * params.per_tile.d + kWarps - 1) / kWarps;
  const int64_t grid =
      std::min(std::max<int64_t>(wanted, num_units), static_cast<int64_t>(ctas_per_unit(kBand)) * num_units);
  if (shared > 0)
    check_cuda(runtime().func_set_attribute(reinterpret_cast<const void*>(append_bands_kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
               "append_bands_kernel: shared memory");
  launch_early(early, "append_bands_kernel", append_bands_kernel, dim3(static_cast<unsigned>(grid)),
               dim3(kThreads), shared, stream, params);
}

}  // namespace tq::cuda::append
