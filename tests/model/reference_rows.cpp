// SPDX-License-Identifier: Apache-2.0
// Sides of the model whose codes have levels of the caller's, or signs of a sketch, and keys in bands, by the
// scalar format.
#include "config.h"
#include "model/reference.h"

namespace tq {
namespace model {
namespace {

constexpr int kSketchWords = 16;  // of signs, at most 1024 coordinates

void rotate(const format::VectorCoder& coder, const float* x, float* y) {
  if (coder.rotation == format::Rotation::kDense)
    return format::dense_apply(coder.dense, x, y, coder.stored, false);
  std::copy_n(x, coder.stored, y);
  format::hadamard_forward(y, coder.stored, coder.signs);
  for (int i = 0; i < coder.stored; i++)
    y[i] = format::mul_rn(y[i], format::hadamard_norm(format::log2_block(coder.stored)));
}

}  // namespace

// Of the coder whose place in rows_ comes next.
void Reference::make_rows(int layer, int head, Kind kind) {
  const tq_layer_config& l = config_.layers[layer];
  const bool key = kind == Kind::kKey;
  const int bits = key ? l.key_bits : l.value_bits, family = key ? l.key_family : l.value_family;
  rows_.emplace_back();
  Rows& rows = rows_.back();
  if (bits == format::kRawBits) return;
  if (family == TQ_CODE_LEVELS) {
    const tq_levels& from = key ? *l.key_levels : *l.value_levels;
    rows.levels.reset(new format::LevelTable{bits, from.unit == 0 ? 1.0f : from.unit, {}, {}});
    std::copy_n(from.levels, 1 << bits, rows.levels->level);
    std::copy_n(from.boundaries, (1 << bits) - 1, rows.levels->boundary);
  }
  if (family != TQ_CODE_PROD) return;
  const int stored = format::stored_dim(l.head_dim);
  const auto kind_of_sketch = static_cast<format::SketchKind>(config_.sketch);
  const auto base = [&](Kind stream) {
    return format::stream_base(config_.rotation_seed, config_.first_layer + layer, l.first_kv_head + head,
                               stream);
  };
  rows.gain =
      format::div_rn(sketch_factor_of(kind_of_sketch, config_.sketch_rule, config_.sketch_factor, stored),
                     format::sketch_divisor(kind_of_sketch, stored));
  format::VectorCoder& first = rows.sketch.first;
  first.dim = first.stored = stored;
  if (kind_of_sketch == format::SketchKind::kGaussian) {
    rows.matrix.resize(static_cast<size_t>(stored) * static_cast<size_t>(stored));
    format::gaussian_matrix(base(format::kSketchStream), stored, rows.matrix.data());
    first.rotation = format::Rotation::kDense;
    first.dense = rows.matrix.data();
    return;
  }
  for (const Kind stream : {format::kSketchStream, format::kSecondSketchStream})
    for (int word = 0; word < kSketchWords; word++)
      rows.signs.push_back(format::stream_word(base(stream), static_cast<uint64_t>(word)));
  first.rotation = format::Rotation::kHadamard;
  first.signs = rows.signs.data();
  rows.sketch.second = first;
  rows.sketch.second.signs += kSketchWords;
}

// What the codes of a vector give back; whether a number had to be replaced.
bool Reference::make_row(const float* input, int layer, int head, Kind kind, float* decoded) const {
  const tq_layer_config& l = config_.layers[layer];
  const bool key = kind == Kind::kKey;
  const int dim = key ? l.head_dim : l.value_dim, bits = key ? l.key_bits : l.value_bits;
  const auto family = static_cast<format::CodeFamily>(key ? l.key_family : l.value_family);
  const format::SideLayout side(dim, format::code_of(family, bits, 0));
  const Rows& own = rows_[coder_index(layer, head, kind)];
  const format::RowCoder row = {coder(layer, head, kind), own.levels.get(), own.sketch, own.gain};
  float y[format::kMaxDim], z[format::kMaxDim], scratch[format::kMaxDim];
  uint8_t codes[format::kMaxDim] = {};
  uint16_t scale = 0;
  const format::RotatedInput in = format::rotate_input(row.vector, input, y, scratch);
  if (!own.levels) {
    format::encode_vector(row.vector, input, codes, &scale);
  } else if (!in.zero) {
    const float s = format::encode_levels(row.vector, *own.levels, y, codes, scratch);
    scale = format::bf16_from_float(
        format::mul_rn(format::mul_rn(s, in.norm_rot), format::exp2_int(in.exponent)));
  }
  // Decoded without the stored form: levels times scale, and what the signs of the residual say.
  float level[format::kMaxLevels], sum[format::kMaxDim];
  for (int code = 0; code < 1 << format::row_code_bits(side); code++)
    level[code] = format::row_level(row, static_cast<uint8_t>(code));
  for (int i = 0; i < side.stored; i++)
    sum[i] = format::mul_rn(format::float_from_bf16(scale), level[codes[i]]);
  if (family == format::CodeFamily::kProd) {
    uint16_t norm = 0;
    std::fill_n(z, side.stored, 1.0f);  // of signs: 0 is a plus
    if (!in.zero) {
      format::residual(in, codes, level, format::float_from_bf16(scale), side.stored, y);
      norm = format::residual_norm(y, side.stored, in.exponent, scratch);
      format::apply_sketch(row.sketch, y, z, rotate);
      for (int i = 0; i < side.stored; i++) z[i] = z[i] < 0 ? -1.0f : 1.0f;
    }
    format::unsketch(row.sketch, z, scratch, format::unrotate);
    const float worth = format::mul_rn(row.gain, format::float_from_bf16(norm));
    for (int i = 0; i < side.stored; i++) sum[i] = format::add_rn(sum[i], format::mul_rn(worth, scratch[i]));
  }
  format::unrotate(row.vector, sum, decoded);
  for (int i = 0; row.vector.centre && i < dim; i++)
    decoded[i] = format::add_rn(decoded[i], row.vector.centre[i]);
  return in.replaced;
}

// Each band as a vector of its own.
bool Reference::make_bands(const float* input, int layer, int head, float* decoded) const {
  const tq_layer_config& l = config_.layers[layer];
  const tq_key_bands& bands = *l.key_bands;
  const format::CodeId side =
      format::banded_code(bands.bits, bands.num_bands, l.key_family == TQ_CODE_TRELLIS);
  const format::VectorCoder whole = coder(layer, head, Kind::kKey);
  bool replaced = false;
  for (int band = 0; band < bands.num_bands; band++) {
    float in[32] = {}, centre[32] = {}, out[32];
    format::VectorCoder own = whole;
    own.dim = std::min(32, l.head_dim - 32 * band);
    own.stored = 32;
    const auto at = [&](int i) {
      return bands.order ? bands.order[head * l.head_dim + 32 * band + i] : 32 * band + i;
    };
    for (int i = 0; i < own.dim; i++) {
      in[i] = input[at(i)];
      if (whole.centre) centre[i] = whole.centre[at(i)];
    }
    own.centre = whole.centre ? centre : nullptr;
    uint64_t signs = 0;
    for (int i = 0; i < 32; i++)
      if (format::sign_bit(whole.signs, 32 * band + i)) signs |= uint64_t{1} << i;
    own.signs = &signs;
    const format::CodeId code = format::band_code(side, band);
    own.codebook = format::builtin_codebook(32, code);
    own.trellis = code.trellis();
    uint8_t codes[32];
    uint16_t scale = 0;
    replaced |= format::encode_vector(own, in, codes, &scale);
    format::decode_vector(own, codes, scale, out);
    for (int i = 0; i < own.dim; i++) decoded[at(i)] = out[i];
  }
  return replaced;
}

}  // namespace model
}  // namespace tq
