// SPDX-License-Identifier: Apache-2.0
// Key bands of a configuration: widths and orders, checked and copied.
#include <stdio.h>

#include <algorithm>

#include "config.h"
#include "config_text.h"
#include "struct_size.h"

namespace tq {
namespace {

constexpr int32_t kMostCoordinates = format::kMaxBands * format::kGroupCodes;

// What a layer has besides that bands do not go with; "" if nothing.
const char* hindrance(const tq_layer_config& layer) {
  if (layer.layer_kind == TQ_LATENT) return "not in a latent layer";
  if (layer.rotation == TQ_ROTATION_DENSE) return "not with rotation = 2 (TQ_ROTATION_DENSE)";
  if (layer.key_family != TQ_CODE_SCALAR && layer.key_family != TQ_CODE_TRELLIS)
    return "key_family must be 1 (TQ_CODE_SCALAR) or 5 (TQ_CODE_TRELLIS)";
  if (layer.head_dim < 1 || layer.head_dim > kMostCoordinates) return "head_dim must be 1 .. 256";
  return "";
}

void check_widths(int32_t layer, const tq_key_bands& bands, LayerReasons& reasons) {
  for (int32_t i = 0; i < bands.num_bands; i++) {
    const int32_t width = bands.bits[i], most = i == 0 ? format::kMostBandBits : bands.bits[i - 1];
    if (width >= 1 && width <= most) continue;
    return reasons.add(layer,
                       "layers[%d].key_bands.bits[%d] = %d: must be 1 .. %d, none above the one before",
                       layer, i, width, std::min(std::max(most, 1), format::kMostBandBits));
  }
}

// Each head's coordinates once.
void check_order(int32_t layer, const int32_t* order, int32_t heads, int32_t dim, LayerReasons& reasons) {
  for (int32_t head = 0; head < heads; head++) {
    bool seen[kMostCoordinates] = {};
    for (int32_t i = 0; i < dim; i++) {
      const int32_t coordinate = order[static_cast<int64_t>(head) * dim + i];
      if (coordinate >= 0 && coordinate < dim && !seen[coordinate]) {
        seen[coordinate] = true;
        continue;
      }
      return reasons.add(layer, "layers[%d].key_bands.order[%d][%d] = %d: must be each of 0 .. %d once",
                         layer, head, i, coordinate, dim - 1);
    }
  }
}

}  // namespace

void ResolvedConfig::resolve_bands(ReasonList& reasons) {
  layer_bands_.assign(resolved_layers_.size(), nullptr);
  LayerReasons layer_reasons(reasons);
  for (size_t i = 0; i < resolved_layers_.size(); i++) {
    tq_layer_config& layer = resolved_layers_[i];
    const int32_t number = static_cast<int32_t>(i);
    const tq_key_bands* const caller = layer.key_bands;
    layer.key_bands = nullptr;
    if (layer.shares_layer > 0 && layer.shares_layer <= number) {
      layer_bands_[i] = layer_bands_[static_cast<size_t>(layer.shares_layer) - 1];
      continue;
    }
    if (!caller) continue;
    if (const char* reason = hindrance(layer); *reason) {
      layer_reasons.add(number, "layers[%d].key_bands: %s", number, reason);
      continue;
    }
    auto own = std::make_unique<OwnBands>();
    tq_key_bands& bands = own->bands;
    try {
      char name[40];
      snprintf(name, sizeof name, "layers[%d].key_bands", number);
      bands = read_struct(caller, name);
    } catch (const Error& error) {
      reasons.add(error.status(), "%s", error.what());
      continue;
    }
    const int32_t count = (layer.head_dim + format::kGroupCodes - 1) / format::kGroupCodes;
    if (bands.num_bands != count || !bands.bits) {
      layer_reasons.add(
          number,
          "layers[%d].key_bands.num_bands = %d, bits = %p: must be %d (head_dim = %d in bands of "
          "32), and not NULL",
          number, bands.num_bands, static_cast<const void*>(bands.bits), count, layer.head_dim);
      continue;
    }
    check_widths(number, bands, layer_reasons);
    own->bits.assign(bands.bits, bands.bits + count);
    if (bands.order && layer.num_kv_heads >= 1 && layer.head_dim >= 1) {
      check_order(number, bands.order, layer.num_kv_heads, layer.head_dim, layer_reasons);
      own->order.assign(bands.order, bands.order + static_cast<int64_t>(layer.num_kv_heads) * layer.head_dim);
      bands.order = own->order.data();
    }
    bands.bits = own->bits.data();
    own->code = format::banded_code(own->bits.data(), count, layer.key_family == TQ_CODE_TRELLIS);
    layer.key_bands = &own->bands;
    layer_bands_[i] = own.get();
    bands_.push_back(std::move(own));
  }
}

}  // namespace tq
