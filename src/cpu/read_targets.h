// SPDX-License-Identifier: Apache-2.0
// Where a read puts the vector of one side: k or v; of a latent layer both sides make up k, and the value
// side is v as well.
#pragma once
#include "requests.h"

namespace tq {
namespace cpu {

// visit(target) for each tensor of the request (ReadRequest, SlotsRead) that has the side's vector. row: of k
// and v.
template <typename Request, typename Visit>
void for_each_target(const Request& request, const LayerGeometry& layer, DataType type, Kind kind,
                     int64_t row, int head, const Visit& visit) {
  const auto at = [&](void* tensor, const TensorStrides& strides, int offset) {
    return static_cast<uint8_t*>(tensor) +
           (row * strides.token + head * strides.head + offset) * dtype_bytes(type);
  };
  if (request.k && (layer.latent || kind == Kind::kKey))
    visit(at(request.k, request.key_strides, layer.input_offset(kind)));
  if (request.v && kind == Kind::kValue) visit(at(request.v, request.value_strides, 0));
}

}  // namespace cpu
}  // namespace tq
