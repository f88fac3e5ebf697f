// SPDX-License-Identifier: Apache-2.0
// What a configuration says of codes: families, codebooks and levels of the caller's, the sketch of prod
// keys.
#include <math.h>
#include <string.h>

#include <algorithm>

#include "config.h"
#include "config_text.h"
#include "format/sketch.h"
#include "struct_size.h"

namespace tq {
namespace {

constexpr Status kBad = Status::kInvalidArgument;
constexpr float kMaxUnit = 1073741824.0f;  // 2^30: keeps every scale finite
constexpr float kMaxFactor = 1024, kMaxLevel = kMaxUnit;

void check_family(const char* name, int32_t family, const char* also, ReasonList& reasons) {
  if (!format::is_family(family))
    reasons.add(Status::kInvalidArgument,
                "%s = %d: must be %sTQ_CODE_SCALAR (1), PROD (2), GROUPED (3), LEVELS (4) or TRELLIS (5)",
                name, family, also);
}

int32_t own_or(int32_t own, int32_t common) { return own != 0 ? own : common; }

}  // namespace

// A codebook of the caller's own.
void check_codebook(const char* name, const tq_codebook& book, ReasonList& reasons) {
  if (!format::may_have_own_book(book.bits)) {
    reasons.add(kBad, "%s.bits = %d: must be 2 .. 6", name, book.bits);
    return;
  }
  if (!(book.unit > 0 && book.unit <= kMaxUnit))
    reasons.add(kBad, "%s.unit = %g: must be above 0 and at most 2^30", name, static_cast<double>(book.unit));
  const int least = format::half_integer_levels(book.bits) ? 0 : 1;
  for (int j = 0; j < 1 << (book.bits - 1); j++) {
    const int value = book.magnitude[j];
    if (value < least || value > 127)
      reasons.add(kBad, "%s.magnitude[%d] = %d: must be %d .. 127 with %d bits", name, j, value, least,
                  book.bits);
    else if (j > 0 && value <= book.magnitude[j - 1])
      reasons.add(kBad, "%s.magnitude[%d] = %d: must be above magnitude[%d] = %d", name, j, value, j - 1,
                  book.magnitude[j - 1]);
  }
}

void check_levels(const char* name, const tq_levels& l, int32_t bits, ReasonList& reasons,
                  format::LevelTable* table) {
  if (l.reserved != 0) reasons.add(Status::kVersion, "%s.reserved = %u: must be 0", name, l.reserved);
  if (l.bits != bits || !format::is_vector_bits(bits)) {
    reasons.add(kBad, "%s.bits = %d: must be %d, within 1 .. 8", name, l.bits, bits);
    return;
  }
  if (!(l.unit >= 0 && l.unit <= kMaxLevel))
    reasons.add(kBad, "%s.unit = %g: must be 0 (1) or up to 2^30", name, static_cast<double>(l.unit));
  if (!l.levels || !l.boundaries) {
    reasons.add(kBad, "%s.levels = %p, %s.boundaries = %p: both are needed", name,
                static_cast<const void*>(l.levels), name, static_cast<const void*>(l.boundaries));
    return;
  }
  table->bits = bits;
  table->unit = l.unit == 0 ? 1.0f : l.unit;
  std::copy_n(l.levels, table->count(), table->level);
  std::copy_n(l.boundaries, table->count() - 1, table->boundary);
  for (int i = 0; i < table->count(); i++)
    if (!(fabsf(table->level[i]) <= kMaxLevel))
      return reasons.add(kBad, "%s.levels[%d] = %g: must be at most 2^30 in size", name, i,
                         static_cast<double>(table->level[i]));
  for (int i = 0; i < table->count() - 1; i++)
    if (!(fabsf(table->boundary[i]) <= kMaxLevel) || (i > 0 && table->boundary[i] < table->boundary[i - 1]))
      return reasons.add(kBad, "%s.boundaries[%d] = %g: must be at most 2^30 in size and not fall", name, i,
                         static_cast<double>(table->boundary[i]));
}

void resolve_sketch_fields(int32_t& sketch, int32_t& rule, float factor, ReasonList& reasons) {
  if (sketch == 0) sketch = TQ_SKETCH_ORTHOGONAL;
  if (rule == 0) rule = TQ_SKETCH_UNBIASED;
  check_count("sketch", sketch, TQ_SKETCH_ORTHOGONAL, TQ_SKETCH_GAUSSIAN, reasons);
  check_count("sketch_rule", rule, TQ_SKETCH_UNBIASED, TQ_SKETCH_LEAST_ERROR, reasons);
  if (!(fabsf(factor) <= kMaxFactor))
    reasons.add(kBad, "sketch_factor = %g: must be 0 (by sketch_rule) or up to %g in size",
                static_cast<double>(factor), static_cast<double>(kMaxFactor));
}

float sketch_factor_of(format::SketchKind sketch, int32_t rule, float factor, int stored) {
  return factor != 0                     ? factor
         : rule == TQ_SKETCH_LEAST_ERROR ? format::least_error_factor(sketch)
                                         : format::unbiased_factor(sketch, stored);
}

format::Codebook codebook_of(int dim, int bits, const tq_codebook* custom) {
  format::Codebook book = format::builtin_codebook(dim, bits);
  if (!custom || custom->bits != bits) return book;
  book.unit = custom->unit;
  for (int j = 0; j < format::kMaxMagnitudes; j++)
    book.magnitude[j] = j < book.count() ? custom->magnitude[j] : 0;
  return book;
}

void ResolvedConfig::resolve_families(ReasonList& reasons) {
  tq_cache_config& c = config_;
  c.code_family = own_or(c.code_family, TQ_CODE_SCALAR);
  c.key_family = own_or(c.key_family, c.code_family);
  c.value_family = own_or(c.value_family, c.code_family);
  check_family("code_family", c.code_family, "", reasons);
  if (c.key_family != c.code_family) check_family("key_family", c.key_family, "0 (code_family), ", reasons);
  if (c.value_family != c.code_family)
    check_family("value_family", c.value_family, "0 (code_family), ", reasons);
  if (c.group_size != 0 && !format::is_group_size(c.group_size))
    reasons.add(Status::kInvalidArgument, "group_size = %d: must be 0 (%d) or one of %s", c.group_size,
                format::kDefaultGroup, ListText<3>(format::kGroupSizes).text);
}

// The sketch removes the bias of a fitted scale, so it goes with the smallest residual.
void ResolvedConfig::resolve_prod(ReasonList& reasons) {
  tq_cache_config& c = config_;
  bool prod = false, others = false;
  for (const tq_layer_config& layer : resolved_layers_) {
    if (layer.key_bits == format::kRawBits) continue;
    (layer.key_family == TQ_CODE_PROD ? prod : others) = true;
  }
  c.key_scale_rule = own_or(c.key_scale_rule, prod && !others ? TQ_SCALE_LS : TQ_SCALE_UNBIASED);
  check_count("key_scale_rule", c.key_scale_rule, TQ_SCALE_LS, TQ_SCALE_PAPER, reasons);
  if (prod) return resolve_sketch_fields(c.sketch, c.sketch_rule, c.sketch_factor, reasons);
  if (c.sketch != 0) reasons.add(kBad, "sketch = %d: must be 0, no side is TQ_CODE_PROD", c.sketch);
  if (c.sketch_rule != 0)
    reasons.add(kBad, "sketch_rule = %d: must be 0, no side is TQ_CODE_PROD", c.sketch_rule);
  if (c.sketch_factor != 0)
    reasons.add(kBad, "sketch_factor = %g: must be 0, no side is TQ_CODE_PROD",
                static_cast<double>(c.sketch_factor));
}

void ResolvedConfig::resolve_codebooks(ReasonList& reasons) {
  struct Side {
    const char* name;
    const tq_codebook** caller;
    tq_codebook* own;
    int32_t tq_layer_config::*bits;
    int32_t tq_layer_config::*family;
  };
  const Side sides[] = {{"key_codebook", &config_.key_codebook, &key_codebook_, &tq_layer_config::key_bits,
                         &tq_layer_config::key_family},
                        {"value_codebook", &config_.value_codebook, &value_codebook_,
                         &tq_layer_config::value_bits, &tq_layer_config::value_family}};
  for (const Side& side : sides) {
    if (!*side.caller) continue;
    try {
      *side.own = read_struct(*side.caller, side.name);
      check_codebook(side.name, *side.own, reasons);
      const bool possible = format::may_have_own_book(side.own->bits);
      const auto uses = [&](const tq_layer_config& layer) {
        return layer.*side.bits == side.own->bits && layer.*side.family == TQ_CODE_SCALAR;
      };
      if (possible && std::none_of(resolved_layers_.begin(), resolved_layers_.end(), uses))
        reasons.add(kBad, "%s.bits = %d: no layer has scalar codes of these bits, so it would not be used",
                    side.name, side.own->bits);
    } catch (const Error& error) {
      reasons.add(error.status(), "%s", error.what());
    }
    *side.caller = side.own;
  }
}

// A copy of levels; null if the caller has none, or if they are wrong.
const tq_levels* ResolvedConfig::own_levels(const char* name, const tq_levels* caller, int32_t bits,
                                            ReasonList& reasons, const format::LevelTable** table) {
  *table = nullptr;
  levels_.push_back(std::make_unique<OwnLevels>());
  OwnLevels& own = *levels_.back();
  try {
    own.levels = read_struct(caller, name);
  } catch (const Error& error) {
    reasons.add(error.status(), "%s", error.what());
    return nullptr;
  }
  check_levels(name, own.levels, bits, reasons, &own.table);
  own.levels.unit = own.table.unit, own.levels.levels = own.table.level;
  own.levels.boundaries = own.table.boundary;
  *table = &own.table;
  return &own.levels;
}

// Each side's own levels, else the cache's; null where no side has the family.
void ResolvedConfig::resolve_levels(ReasonList& reasons) {
  struct Side {
    const char* name;
    const tq_levels* tq_cache_config::*common;
    const tq_levels* tq_layer_config::*own;
    int32_t tq_layer_config::*bits;
    int32_t tq_layer_config::*family;
  };
  constexpr Side kSides[] = {{"key_levels", &tq_cache_config::key_levels, &tq_layer_config::key_levels,
                              &tq_layer_config::key_bits, &tq_layer_config::key_family},
                             {"value_levels", &tq_cache_config::value_levels, &tq_layer_config::value_levels,
                              &tq_layer_config::value_bits, &tq_layer_config::value_family}};
  layer_tables_.assign(2 * resolved_layers_.size(), nullptr);
  LayerReasons layer_reasons(reasons);
  for (int side = 0; side < 2; side++) {
    const Side& s = kSides[side];
    const tq_levels* const common = config_.*s.common;
    const tq_levels* resolved = nullptr;  // the cache's, once a layer needs them
    const format::LevelTable* table = nullptr;
    bool any = false, missing = false;
    int32_t bits = 0;  // of the cache's levels
    for (size_t i = 0; i < resolved_layers_.size(); i++) {
      tq_layer_config& layer = resolved_layers_[i];
      const int32_t number = static_cast<int32_t>(i);
      const bool needed = layer.*s.family == TQ_CODE_LEVELS && layer.*s.bits != format::kRawBits;
      const tq_levels* const own = layer.*s.own;
      layer.*s.own = nullptr;
      if (layer.shares_layer != 0) {
        if (own) layer_reasons.add(number, "layers[%d].%s: it shares another layer's tokens", number, s.name);
        if (layer.shares_layer < 0) continue;  // refused elsewhere, as is what follows
        const size_t source = static_cast<size_t>(layer.shares_layer) - 1;
        if (source >= i) continue;
        layer.*s.own = resolved_layers_[source].*s.own;
        layer_tables_[2 * i + static_cast<size_t>(side)] =
            layer_tables_[2 * source + static_cast<size_t>(side)];
        continue;
      }
      if (!needed) {
        if (own)
          layer_reasons.add(number, "layers[%d].%s: must be NULL, the side has other codes", number, s.name);
        continue;
      }
      any = true;
      const format::LevelTable*& used = layer_tables_[2 * i + static_cast<size_t>(side)];
      if (own) {
        char name[48];
        snprintf(name, sizeof name, "layers[%d].%s", number, s.name);
        layer.*s.own = own_levels(name, own, layer.*s.bits, reasons, &used);
      } else if (!common) {
        if (!missing)
          layer_reasons.add(number, "layer %d: %s = NULL: needed with family = 4 (TQ_CODE_LEVELS)", number,
                            s.name);
        missing = true;
      } else {
        if (!resolved) {
          bits = layer.*s.bits;
          resolved = own_levels(s.name, common, bits, reasons, &table);
        }
        if (layer.*s.bits != bits)
          layer_reasons.add(number, "layer %d: %s.bits = %d: must be %d", number, s.name, bits,
                            layer.*s.bits);
        layer.*s.own = resolved;
        used = table;
      }
    }
    if (common && !any) reasons.add(kBad, "%s: must be NULL, no side has TQ_CODE_LEVELS", s.name);
    config_.*s.common = resolved;
  }
}

}  // namespace tq
