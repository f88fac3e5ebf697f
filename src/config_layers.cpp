// SPDX-License-Identifier: Apache-2.0
// The layers of a configuration: what each takes from tq_cache_config and what it says itself, the layers
// that read another's tokens, and the groups and head shapes that follow.
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <set>

#include "config.h"
#include "config_text.h"
#include "struct_size.h"

namespace tq {
namespace {

constexpr int32_t kMaxHeads = 65536;
// Element of the caller's array. The first one's struct_size says where the others lie; a larger one further
// on would have us read behind the array's end.
tq_layer_config read_layer(const tq_layer_config* layers, int32_t layer) {
  char name[32];
  snprintf(name, sizeof name, "layers[%d]", layer);
  uint32_t size;
  const char* at = reinterpret_cast<const char*>(layers) + static_cast<size_t>(layer) * layers->struct_size;
  memcpy(&size, at, sizeof size);
  TQ_CHECK(size == layers->struct_size, Status::kInvalidArgument,
           "%s.struct_size = %u: that of layers[0] is %u, and all must be alike", name, size,
           layers->struct_size);
  return read_struct(reinterpret_cast<const tq_layer_config*>(at), name);
}

// The layer's own value, else the cache's. A field's range is the caller's affair.
int32_t own_or(int32_t own, int32_t common) { return own != 0 ? own : common; }

struct Field {
  const char* name;
  int32_t tq_layer_config::*member;
};
// What a layer that reads another's tokens has from it.
constexpr Field kSharedFields[] = {
    {"num_kv_heads", &tq_layer_config::num_kv_heads},   {"head_dim", &tq_layer_config::head_dim},
    {"value_dim", &tq_layer_config::value_dim},         {"key_bits", &tq_layer_config::key_bits},
    {"value_bits", &tq_layer_config::value_bits},       {"key_family", &tq_layer_config::key_family},
    {"value_family", &tq_layer_config::value_family},   {"rotation", &tq_layer_config::rotation},
    {"first_kv_head", &tq_layer_config::first_kv_head}, {"group_size", &tq_layer_config::group_size},
    {"layer_kind", &tq_layer_config::layer_kind},
};

void check_heads(int32_t layer, const tq_layer_config& own, const tq_layer_config& full,
                 LayerReasons& reasons) {
  for (const Field field : {Field{"num_q_heads", &tq_layer_config::num_q_heads},
                            Field{"num_kv_heads", &tq_layer_config::num_kv_heads}}) {
    const int32_t value = own.*field.member;
    if (value < 0 || value > kMaxHeads)
      reasons.add(layer, "layers[%d].%s = %d: must be 0 (the cache's own) or 1 .. %d", layer, field.name,
                  value, kMaxHeads);
    else if (full.*field.member == 0)
      reasons.add(layer, "layers[%d].%s = 0: stands for %s, which is 0 too", layer, field.name, field.name);
  }
  if (full.num_q_heads >= 1 && full.num_kv_heads >= 1 && full.num_q_heads % full.num_kv_heads != 0)
    reasons.add(layer, "layers[%d]: num_q_heads = %d must be a multiple of num_kv_heads = %d", layer,
                full.num_q_heads, full.num_kv_heads);
  if (own.first_kv_head < 0 || own.first_kv_head > kMaxFirstKvHead)
    reasons.add(layer, "layers[%d].first_kv_head = %d: must be 0 (the cache's own) or 1 .. %d", layer,
                own.first_kv_head, kMaxFirstKvHead);
}

void check_dims(int32_t layer, const tq_layer_config& own, const tq_layer_config& full,
                LayerReasons& reasons) {
  for (const Field field :
       {Field{"head_dim", &tq_layer_config::head_dim}, Field{"value_dim", &tq_layer_config::value_dim}}) {
    const int32_t value = own.*field.member;
    if (full.layer_kind == TQ_LATENT) continue;  // check_latent
    if (value != 0 && !format::is_head_dim(value))
      reasons.add(layer, "layers[%d].%s = %d: must be 0 or %s", layer, field.name, value,
                  format::kHeadDimText);
    else if (full.*field.member == 0)
      reasons.add(layer, "layers[%d].%s = 0: stands for %s, which is 0 too", layer, field.name, field.name);
  }
}

void check_codes(int32_t layer, const tq_layer_config& own, const tq_layer_config& full,
                 LayerReasons& reasons) {
  const ListText<8> list(format::kAllCodeBits);
  for (const Field field :
       {Field{"key_bits", &tq_layer_config::key_bits}, Field{"value_bits", &tq_layer_config::value_bits}}) {
    const int32_t value = own.*field.member;
    if (value != 0 && !format::is_code_bits(value))
      reasons.add(layer, "layers[%d].%s = %d: must be 0 or one of %s", layer, field.name, value, list.text);
    else if (full.*field.member == 0 && !(full.key_bands && field.member == &tq_layer_config::key_bits))
      reasons.add(layer, "layers[%d].%s = 0: stands for %s, which is 0 too", layer, field.name, field.name);
  }
  for (const Field field : {Field{"key_family", &tq_layer_config::key_family},
                            Field{"value_family", &tq_layer_config::value_family}})
    if (own.*field.member != 0 && !format::is_family(own.*field.member))
      reasons.add(layer,
                  "layers[%d].%s = %d: must be 0 (the cache's own), TQ_CODE_SCALAR (1), PROD (2), GROUPED "
                  "(3), LEVELS (4) or TRELLIS (5)",
                  layer, field.name, own.*field.member);
  if (own.group_size != 0 && !format::is_group_size(own.group_size))
    reasons.add(layer, "layers[%d].group_size = %d: must be 0 (the cache's own) or one of %s", layer,
                own.group_size, ListText<3>(format::kGroupSizes).text);
  if (own.layer_kind < 0 || own.layer_kind > TQ_LATENT)
    reasons.add(layer,
                "layers[%d].layer_kind = %d: must be 0 (the cache's own), TQ_KEYS_VALUES (1) or TQ_LATENT "
                "(2)",
                layer, own.layer_kind);
  if (own.reserved != 0) reasons.add(layer, "layers[%d].reserved = %u: must be 0", layer, own.reserved);
  if (own.rotation < 0 || own.rotation > TQ_ROTATION_DENSE)
    reasons.add(layer, "layers[%d].rotation = %d: must be 0 .. %d", layer, own.rotation, TQ_ROTATION_DENSE);
  if (own.sliding_window < 0)
    reasons.add(layer, "layers[%d].sliding_window = %d: must be 0 (all tokens) or more", layer,
                own.sliding_window);
}

// Both parts of a latent layer's keys, wherever it has them from.
void check_latent(int32_t layer, const tq_layer_config& full, LayerReasons& reasons) {
  const int32_t rest = full.head_dim - full.value_dim;
  if (full.value_dim <= 0 || rest <= 0 || full.head_dim > format::kMaxDim ||
      !format::is_head_dim(full.value_dim) || !format::is_head_dim(rest))
    reasons.add(layer,
                "layer %d: head_dim = %d, value_dim = %d: with layer_kind = 2 (TQ_LATENT) value_dim and "
                "head_dim - value_dim must each be %s, and head_dim at most %d",
                layer, full.head_dim, full.value_dim, format::kHeadDimText, format::kMaxDim);
}

// Bits that a side's family does not have, wherever it has them from; once for layers alike.
void check_family_bits(int32_t layer, const tq_layer_config& full, LayerReasons& reasons) {
  struct Side {
    const char* kind;
    int32_t bits, family;
  };
  for (const Side side :
       {Side{"key", full.key_bits, full.key_family}, Side{"value", full.value_bits, full.value_family}})
    if (side.bits == format::kRawBits || !format::is_family(side.family) ||
        !format::is_code_bits(side.bits)) {
      continue;  // raw in any family, or refused elsewhere
    } else if (side.family == TQ_CODE_TRELLIS && full.layer_kind == TQ_LATENT) {
      reasons.add(layer, "layer %d: %s_family = 5 (TQ_CODE_TRELLIS): not in a latent layer", layer,
                  side.kind);
    } else if (side.family == TQ_CODE_PROD && side.kind[0] == 'v') {
      reasons.add(layer, "layer %d: value_family = 2 (TQ_CODE_PROD): keys alone have it", layer);
    } else if (!format::is_code(static_cast<format::CodeFamily>(side.family), side.bits)) {
      const bool grouped = side.family == TQ_CODE_GROUPED;
      reasons.add(layer, "layer %d: %s_bits = %d: must be one of %s, or 16 (raw), with %s_family = %d (%s)",
                  layer, side.kind, side.bits, grouped ? ListText<4>(format::kGroupedBits).text : "2 3 4",
                  side.kind, side.family,
                  grouped                       ? "TQ_CODE_GROUPED"
                  : side.family == TQ_CODE_PROD ? "TQ_CODE_PROD"
                                                : "TQ_CODE_TRELLIS");
    }
}

bool same_codes(const tq_layer_config& a, const tq_layer_config& b) {
  return a.key_bits == b.key_bits && a.value_bits == b.value_bits && a.key_family == b.key_family &&
         a.value_family == b.value_family;
}

bool same_parts(const tq_layer_config& a, const tq_layer_config& b) {
  return a.layer_kind == b.layer_kind && a.head_dim == b.head_dim && a.value_dim == b.value_dim;
}

bool has_family(const tq_layer_config& layer, int32_t family) {
  return (layer.key_family == family && layer.key_bits != format::kRawBits) ||
         (layer.value_family == family && layer.value_bits != format::kRawBits);
}

// `full` becomes the layer it shares, with its own query heads and window.
void resolve_sharing(int32_t layer, const tq_layer_config& own, const std::vector<tq_layer_config>& before,
                     tq_layer_config& full, LayerReasons& reasons) {
  if (own.shares_layer < 0 || own.shares_layer > layer) {
    reasons.add(layer, "layers[%d].shares_layer = %d: must be 0 (none) or 1 + the index of an earlier layer",
                layer, own.shares_layer);
    return;
  }
  const int32_t source = own.shares_layer - 1;
  const tq_layer_config& from = before[static_cast<size_t>(source)];
  if (from.shares_layer != 0) {
    reasons.add(layer, "layers[%d].shares_layer = %d: layer %d shares another's tokens itself", layer,
                own.shares_layer, source);
    return;
  }
  for (const Field& field : kSharedFields) {
    if (own.*field.member != 0 && own.*field.member != from.*field.member)
      reasons.add(layer, "layers[%d].%s = %d: it shares the tokens of layer %d, where it is %d", layer,
                  field.name, own.*field.member, source, from.*field.member);
    full.*field.member = from.*field.member;
  }
  if (own.key_bands)
    reasons.add(layer, "layers[%d].key_bands: it shares the tokens of layer %d, and has its bands", layer,
                source);
  full.key_bands = from.key_bands;
  if (from.sliding_window != 0 && own.sliding_window > from.sliding_window)
    reasons.add(layer, "layers[%d].sliding_window = %d: layer %d, whose tokens it shares, keeps those of %d",
                layer, own.sliding_window, source, from.sliding_window);
  full.sliding_window = own_or(own.sliding_window, from.sliding_window);
}

format::CodeId code_of(int32_t family, int32_t bits, int32_t group, bool latent) {
  const format::CodeId id = format::code_of(static_cast<format::CodeFamily>(family), bits, group);
  return latent ? format::latent_code(id) : id;
}

format::Codebook layer_codebook(int dim, format::CodeId code, const tq_codebook* custom) {
  return code.family == format::CodeFamily::kProd ? codebook_of(dim, code.bits - 1, nullptr)
         : code.trellis()                         ? format::trellis_codebook(code.bits)
         : code.family == format::CodeFamily::kScalar || code.family == format::CodeFamily::kRows
             ? codebook_of(dim, code.bits, custom)
             : format::Codebook{};
}

}  // namespace

void ResolvedConfig::resolve_layers(ReasonList& reasons) {
  LayerReasons layer_reasons(reasons);
  const tq_layer_config* caller = config_.layers;
  bool any_grouped = false;
  for (int32_t i = 0; i < static_cast<int32_t>(key_bits_.size()); i++) {
    tq_layer_config own = {};
    if (caller) {
      try {
        own = read_layer(caller, i);
      } catch (const Error& error) {  // where the others lie is not known
        reasons.add(error.status(), "%s", error.what());
        break;
      }
    }
    tq_layer_config full = own;
    full.struct_size = sizeof full;
    full.num_q_heads = own_or(own.num_q_heads, config_.num_q_heads);
    full.num_kv_heads = own_or(own.num_kv_heads, config_.num_kv_heads);
    full.head_dim = own_or(own.head_dim, config_.head_dim);
    full.layer_kind = own_or(own.layer_kind, config_.layer_kind);
    const bool latent = full.layer_kind == TQ_LATENT;
    full.value_dim = own_or(own.value_dim, own_or(config_.value_dim, latent ? 0 : full.head_dim));
    full.key_bits = own.key_bands ? 0 : own_or(own.key_bits, key_bits_[static_cast<size_t>(i)]);
    full.value_bits = own_or(own.value_bits, value_bits_[static_cast<size_t>(i)]);
    full.key_family = own_or(own.key_family, config_.key_family);
    full.value_family = own_or(own.value_family, config_.value_family);
    full.group_size = own_or(own.group_size, own_or(config_.group_size, format::kDefaultGroup));
    full.rotation = own_or(own.rotation, config_.rotation);
    full.first_kv_head = own_or(own.first_kv_head, config_.first_kv_head);
    if (own.shares_layer != 0) resolve_sharing(i, own, resolved_layers_, full, layer_reasons);
    if (caller) {
      check_heads(i, own, full, layer_reasons);
      check_dims(i, own, full, layer_reasons);
      check_codes(i, own, full, layer_reasons);
    }
    if (i == 0 || !same_codes(full, resolved_layers_.back())) check_family_bits(i, full, layer_reasons);
    if (full.layer_kind == TQ_LATENT && (i == 0 || !same_parts(full, resolved_layers_.back())))
      check_latent(i, full, layer_reasons);
    const bool grouped = has_family(full, TQ_CODE_GROUPED);
    any_grouped |= grouped;
    if (format::is_group_size(own.group_size) && !grouped)
      layer_reasons.add(i, "layers[%d].group_size = %d: must be 0, no side of it is grouped", i,
                        own.group_size);
    if (!grouped) full.group_size = 0;
    if (own.key_bands && own.key_bits != 0)
      layer_reasons.add(i, "layers[%d].key_bits = %d: must be 0, key_bands has the widths", i, own.key_bits);
    key_bits_[static_cast<size_t>(i)] = full.key_bits;
    value_bits_[static_cast<size_t>(i)] = full.value_bits;
    resolved_layers_.push_back(full);
  }
  if (!caller && config_.value_dim == 0) config_.value_dim = config_.head_dim;
  if (any_grouped && config_.group_size == 0) config_.group_size = format::kDefaultGroup;
  if (!any_grouped && config_.group_size != 0)
    reasons.add(Status::kInvalidArgument, "group_size = %d: must be 0, no side is grouped",
                config_.group_size);
  config_.layers = resolved_layers_.data();
}

bool ResolvedConfig::any_sliding() const {
  return std::any_of(resolved_layers_.begin(), resolved_layers_.end(),
                     [](const tq_layer_config& layer) { return layer.sliding_window > 0; });
}

void ResolvedConfig::build_layers(ReasonList& reasons) {
  Geometry& g = geometry_;
  for (int32_t i = 0; i < static_cast<int32_t>(resolved_layers_.size()); i++) {
    const tq_layer_config& from = resolved_layers_[static_cast<size_t>(i)];
    LayerGeometry layer = {};
    layer.num_q_heads = from.num_q_heads;
    layer.num_kv_heads = from.num_kv_heads;
    layer.q_per_kv = from.num_q_heads / from.num_kv_heads;
    layer.latent = from.layer_kind == TQ_LATENT;
    layer.head_dim = layer.latent ? from.head_dim - from.value_dim : from.head_dim;
    layer.value_dim = from.value_dim;
    const OwnBands* const bands = layer_bands_[static_cast<size_t>(i)];
    layer.key_code =
        bands ? bands->code : code_of(from.key_family, from.key_bits, from.group_size, layer.latent);
    layer.key_order = bands && !bands->order.empty() ? bands->order.data() : nullptr;
    layer.value_code = code_of(from.value_family, from.value_bits, from.group_size, layer.latent);
    layer.key_book = layer_codebook(layer.head_dim, layer.key_code, config_.key_codebook);
    layer.value_book = layer_codebook(layer.value_dim, layer.value_code, config_.value_codebook);
    layer.key_levels = layer_tables_[2 * static_cast<size_t>(i)];
    layer.value_levels = layer_tables_[2 * static_cast<size_t>(i) + 1];
    if (layer.key_code.family == format::CodeFamily::kProd)
      layer.sketch_factor =
          sketch_factor_of(static_cast<format::SketchKind>(config_.sketch), config_.sketch_rule,
                           config_.sketch_factor, format::stored_dim(layer.head_dim));
    layer.rotation = static_cast<format::Rotation>(from.rotation);
    layer.sliding_window = from.sliding_window;
    layer.storage = from.shares_layer == 0 ? i : from.shares_layer - 1;
    layer.first_kv_head = from.first_kv_head;
    while (layer.shape < g.num_shapes && !(g.shapes[layer.shape].num_q_heads == layer.num_q_heads &&
                                           g.shapes[layer.shape].num_kv_heads == layer.num_kv_heads))
      layer.shape++;
    if (layer.shape == kMaxHeadShapes) {
      reasons.add(Status::kNotSupported,
                  "layers[%d]: num_q_heads = %d, num_kv_heads = %d: at most %d different pairs", i,
                  layer.num_q_heads, layer.num_kv_heads, kMaxHeadShapes);
      return;
    }
    if (layer.shape == g.num_shapes) g.shapes[g.num_shapes++] = layer;
    layers_.push_back(layer);
  }
  // One group is the full layers', one that of the exact copies.
  std::set<int32_t> windows;
  for (int32_t i = 0; i < static_cast<int32_t>(layers_.size()); i++)
    if (layers_[static_cast<size_t>(i)].storage == i && layers_[static_cast<size_t>(i)].sliding_window > 0)
      windows.insert(layers_[static_cast<size_t>(i)].sliding_window);
  if (windows.size() > kMaxPageGroups - 2)
    reasons.add(Status::kNotSupported, "layers: %zu different sliding windows, at most %d", windows.size(),
                kMaxPageGroups - 2);
}

// Full layers first, then one group for each window, in the layers' order.
void ResolvedConfig::build_groups() {
  Geometry& g = geometry_;
  const tq_cache_config& c = config_;
  const auto window_of = [&](const LayerGeometry& layer) -> int64_t {
    return layer.sliding_window == 0 || layer.sliding_window >= c.max_sequence_tokens ? kAllTokens
                                                                                      : layer.sliding_window;
  };
  g.num_groups = 0;
  for (const bool full : {true, false})
    for (int32_t i = 0; i < g.num_layers; i++) {
      LayerGeometry& layer = layers_[static_cast<size_t>(i)];
      if (layer.storage != i) {
        layer.group = layers_[static_cast<size_t>(layer.storage)].group;
        continue;
      }
      const int64_t window = window_of(layer);
      if ((window == kAllTokens) != full) continue;
      layer.group = 0;
      while (layer.group < g.num_groups && g.groups[layer.group].window != window) layer.group++;
      if (layer.group < g.num_groups) continue;
      PageGroup& group = g.groups[g.num_groups++];
      group = PageGroup{c.page_size, 0, (c.max_sequence_tokens - 1) / c.page_size + 1};
      group.window = window;
      group.rollback = c.rollback_tokens;
      group.layer = i;
    }
}

int64_t ResolvedConfig::token_bytes(int32_t layer) const {
  return geometry_.own_page_bytes(layer) / geometry_.page_size;
}

int64_t ResolvedConfig::fp16_token_bytes(int32_t layer) const {
  const LayerGeometry& l = geometry_.layers[layer];
  return geometry_.stores(layer) ? static_cast<int64_t>(l.num_kv_heads) * (l.head_dim + l.value_dim) * 2 : 0;
}

int64_t ResolvedConfig::token_bytes() const {
  int64_t bytes = 0;
  for (int32_t i = 0; i < geometry_.num_layers; i++) bytes += token_bytes(i);
  return bytes;
}

int64_t ResolvedConfig::fp16_token_bytes() const {
  int64_t bytes = 0;
  for (int32_t i = 0; i < geometry_.num_layers; i++) bytes += fp16_token_bytes(i);
  return bytes;
}

}  // namespace tq
