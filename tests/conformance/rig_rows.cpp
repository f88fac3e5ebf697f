// SPDX-License-Identifier: Apache-2.0
// The coders of a rig, made from its seed alone, and what a vector becomes in a side by rows, by the scalar
// kernels, and in bands, by the format's code: the golden files check both.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "rig.h"

namespace tq {
namespace test {

const format::VectorCoder& Rig::coder(int head, Kind kind) {
  const bool key = kind == Kind::kKey;
  Coder& own = coders_[head * 2 + static_cast<int>(kind)];
  format::VectorCoder& coder = own.coder;
  if (coder.dim > 0) return coder;
  coder.dim = key ? config.head_dim : config.value_dim;
  coder.stored = format::stored_dim(coder.dim);
  coder.rotation = config.rotation;
  const uint64_t base =
      format::stream_base(geometry.rotation_seed, geometry.first_layer, geometry.first_kv_head + head, kind);
  if (config.rotation == format::Rotation::kHadamard) {
    for (int w = 0; w < format::sign_words(coder.stored); w++)
      own.signs.push_back(format::stream_word(base, w));
    coder.signs = own.signs.data();
  } else {
    own.dense.resize(static_cast<size_t>(coder.stored) * coder.stored);
    std::vector<double> work(own.dense.size() + coder.stored);
    format::dense_matrix(base, coder.stored, own.dense.data(), work.data());
    coder.dense = own.dense.data();
  }
  coder.centre = config.centres ? centre_[key ? 0 : 1].data() + head * coder.dim : nullptr;
  coder.rule = key ? config.key_rule : config.value_rule;
  coder.search = true;
  coder.codebook = key ? geometry.layers[0].key_book : geometry.layers[0].value_book;
  coder.trellis = code_of(config, kind).trellis();
  coder.kind = kind;
  return coder;
}

format::RowCoder Rig::row_coder(int head, Kind kind) {
  format::RowCoder row;
  row.vector = coder(head, kind);
  row.levels = kind == Kind::kKey ? geometry.key_levels : geometry.value_levels;
  if (code_of(config, kind).family != format::CodeFamily::kProd) return row;
  // Signs, or a matrix, of streams beside those of the rotations.
  const auto stream = [&](Kind kind) {
    return format::stream_base(geometry.rotation_seed, geometry.first_layer, geometry.first_kv_head + head,
                               kind);
  };
  const int stored = row.vector.stored;
  const size_t words = static_cast<size_t>(format::sign_words(stored));
  Coder& own = coders_[1000 + head];
  own.signs.resize(2 * words);
  for (size_t w = 0; w < 2 * words; w++)
    own.signs[w] = format::stream_word(
        stream(w < words ? format::kSketchStream : format::kSecondSketchStream), w % words);
  format::VectorCoder& first = row.sketch.first;
  first.dim = first.stored = stored;
  first.rotation = format::Rotation::kHadamard;
  first.signs = own.signs.data();
  row.sketch.second = first;
  row.sketch.second.signs += words;
  if (config.sketch == format::SketchKind::kGaussian) {
    own.dense.resize(static_cast<size_t>(stored) * static_cast<size_t>(stored));
    format::gaussian_matrix(stream(format::kSketchStream), stored, own.dense.data());
    first.rotation = format::Rotation::kDense;
    first.dense = own.dense.data();
  }
  row.gain = geometry.layers[0].sketch_factor / format::sketch_divisor(config.sketch, stored);
  return row;
}

std::vector<float> row_and_back(const format::RowCoder& coder, const format::SideLayout& side,
                                const std::vector<float>& x) {
  alignas(64) float padded[format::kMaxDim + 16] = {};
  std::copy(x.begin(), x.end(), padded);
  std::vector<uint32_t> row(static_cast<size_t>(side.row_words()));
  std::vector<uint16_t> scales(static_cast<size_t>(side.scales_per_token()));
  cpu::Noticed noticed;
  cpu::encode_row(kernels_of("scalar"), coder, side, padded, row.data(), scales.data(), &noticed);
  std::vector<float> decoded(x.size());
  format::decode_row(coder, side, row.data(), scales.data(), decoded.data());
  return decoded;
}

std::vector<int32_t> some_orders(int heads, int dim) {
  std::vector<int32_t> orders;
  Random random(31);
  for (int head = 0; head < heads; head++) {
    std::vector<int32_t> own(static_cast<size_t>(dim));
    std::iota(own.begin(), own.end(), 0);
    for (size_t i = own.size() - 1; i > 0; i--)
      std::swap(own[i], own[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
    orders.insert(orders.end(), own.begin(), own.end());
  }
  return orders;
}

// Each band as a vector of its own.
std::vector<float> Rig::bands_and_back(int head, const std::vector<float>& x) {
  const format::CodeId code = code_of(config, Kind::kKey);
  const int dim = config.head_dim;
  const uint64_t base = format::stream_base(geometry.rotation_seed, geometry.first_layer,
                                            geometry.first_kv_head + head, Kind::kKey);
  std::vector<float> result(x.size());
  for (int band = 0; 32 * band < dim; band++) {
    const int32_t* order = order_.data() + head * dim + 32 * band;
    format::VectorCoder own = coder(head, Kind::kKey);
    own.dim = std::min(32, dim - 32 * band);
    own.stored = 32;
    const format::CodeId band_code = format::band_code(code, band);
    own.codebook = format::builtin_codebook(32, band_code);
    own.trellis = band_code.trellis();
    const uint64_t signs = format::stream_word(base, static_cast<uint64_t>(band / 2)) >> (band % 2 ? 32 : 0);
    own.signs = &signs;
    float in[32], centre[32], out[32];
    for (int i = 0; i < own.dim; i++) {
      in[i] = x[static_cast<size_t>(order[i])];
      centre[i] = own.centre ? own.centre[order[i]] : 0;
    }
    own.centre = own.centre ? centre : nullptr;
    uint8_t codes[32];
    uint16_t scale;
    format::encode_vector(own, in, codes, &scale);
    format::decode_vector(own, codes, scale, out);
    for (int i = 0; i < own.dim; i++) result[static_cast<size_t>(order[i])] = out[i];
  }
  return result;
}

void expect_rows_by_themselves(RigConfig config) {
  config.max_tokens = 2048;
  const int64_t heads = static_cast<int64_t>(config.kv_heads) * config.q_per_kv;
  Result first;
  for (const int threads : {1, 4})
    for (const int64_t queries : {1, 6}) {
      config.threads = threads;
      Rig rig(config);
      rig.step({{0, 1200, 0}});
      rig.step({{0, 6, queries}});
      Result last = rig.attend();
      last.lse.erase(last.lse.begin(), last.lse.end() - heads);
      last.out.erase(last.out.begin(), last.out.end() - heads * config.value_dim);
      if (first.out.empty()) first = last;
      EXPECT_TRUE(same_bits(first, last)) << threads << " threads, " << queries << " queries";
    }
}

}  // namespace test
}  // namespace tq
