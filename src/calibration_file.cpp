// SPDX-License-Identifier: Apache-2.0
// The file of a calibration (FORMAT.md section 9): in the frame of saved sequences, so that it is known to be
// whole, with a magic of its own.
#include <math.h>
#include <string.h>

#include <algorithm>

#include "calibration.h"
#include "status.h"

namespace tq {
namespace {

constexpr uint8_t kMagic[8] = {0x89, 'T', 'Q', 'K', 'C', '\r', '\n', 0x1A};
constexpr uint32_t kVersion = 1, kWithMatrices = 2;

void require(bool right, const char* what) { TQ_CHECK(right, Status::kCorruptData, "calibration: %s", what); }

// Numbers of the payload, as they are written and read; little-endian, as the machine is.
class Text {
 public:
  template <typename T>
  void put(const T* from, size_t count) {
    const uint8_t* first = reinterpret_cast<const uint8_t*>(from);
    bytes_.insert(bytes_.end(), first, first + count * sizeof(T));
  }
  template <typename T>
  void put(const T& value) {
    put(&value, 1);
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  std::vector<uint8_t> bytes_;
};

// Of the payload of `total` bytes, and no more than that. Memory is taken as bytes come: `total`, and the
// numbers that say how large tables are, are the file's word.
class Source {
 public:
  Source(StateReader& in, uint64_t total) : in_(in), left_(total) {}
  template <typename T>
  std::vector<T> take(size_t count) {
    require(count <= left_ / sizeof(T), "its tables are longer than it");
    left_ -= count * sizeof(T);
    std::vector<T> values;
    while (values.size() < count) {
      const size_t first = values.size(), now = std::min(count - first, size_t{kStatePiece} / sizeof(T));
      values.resize(first + now);
      in_.payload(reinterpret_cast<uint8_t*>(values.data() + first), static_cast<int64_t>(now * sizeof(T)));
    }
    return values;
  }
  template <typename T>
  T take() {
    return take<T>(1)[0];
  }
  void end() const { require(left_ == 0, "it is longer than its tables"); }

 private:
  StateReader& in_;
  uint64_t left_;
};

void require_finite(const std::vector<float>& values) {
  require(all_finite(values), "a centre is not finite");
}

void require_order(const std::vector<int32_t>& order, int32_t heads, int32_t dim) {
  for (int32_t head = 0; head < heads; head++) {
    std::vector<bool> seen(static_cast<size_t>(dim));
    for (int32_t i = 0; i < dim; i++) {
      const int32_t at = order[static_cast<size_t>(head) * static_cast<size_t>(dim) + static_cast<size_t>(i)];
      require(at >= 0 && at < dim && !seen[static_cast<size_t>(at)], "an order is none");
      seen[static_cast<size_t>(at)] = true;
    }
  }
}

double take_error(Source& in) {
  const float error = in.take<float>();
  require(isfinite(error) && error >= 0, "an error");
  return static_cast<double>(error);
}

// The bits, widths, rates and bytes are those that measuring would have written; the error alone is new.
std::vector<SideChoice> take_choices(Source& in, int32_t dim, int32_t bands) {
  std::vector<SideChoice> choices;
  const int32_t stored = (dim + 31) / 32;
  for (const int32_t width : kUniformBits)
    choices.push_back(SideChoice{width, 0, 2 * width, 4 * stored * width + 2, take_error(in)});
  for (int32_t half = kLeastHalfBits; bands > 0 && half <= kMostHalfBits; half++) {
    if (half * bands % 2 != 0) continue;
    SideChoice choice = {0, in.take<uint32_t>(), half, 2 * half * bands + 2 * bands, 0};
    choice.error = take_error(in);
    int32_t sum = 0, most = format::kMostBandBits;
    for (int32_t band = 0; band < bands; band++) {
      const int32_t width = format::band_bits(choice.bands, band);
      require(width >= 1 && width <= most, "widths of bands");
      sum += most = width;
    }
    require(2 * sum == half * bands && (bands == 8 || choice.bands >> (4 * bands) == 0), "widths of bands");
    choices.push_back(choice);
  }
  return choices;
}

// A layer's key matrices, if it has any.
KeyMatrix take_matrix(Source& in, const tq_calibration_config& c, int32_t layer) {
  const uint32_t has = in.take<uint32_t>();
  require(has <= 1, "whether a layer has matrices");
  if (has == 0) return {};
  const size_t dim = static_cast<size_t>(c.head_dim);
  const std::vector<float> given = in.take<float>(static_cast<size_t>(c.num_kv_heads) * dim * dim);
  try {
    return KeyMatrix::make(layer, c.num_kv_heads, c.head_dim, given.data());
  } catch (const Error& error) {
    throw Error(Status::kCorruptData, "calibration: %s", error.what());
  }
}

void put_choices(const std::vector<SideChoice>& choices, Text* text) {
  for (const SideChoice& choice : choices) {
    if (choice.bits == 0) text->put(choice.bands);
    text->put(static_cast<float>(choice.error));
  }
}

}  // namespace

void Calibration::save(const tq_io& io) {
  const Gate::Use use(gate_, true);
  measure();
  Text text;
  bool matrices = false;
  for (int32_t i = 0; i < config_.num_layers; i++) matrices |= !matrix_of(i).empty();
  for (size_t i = 0; i < measured_.size(); i++) {
    const Measured& layer = measured_[i];
    if (matrices) {
      const KeyMatrix& matrix = matrix_of(static_cast<int32_t>(i));
      text.put(static_cast<uint32_t>(!matrix.empty()));
      text.put(matrix.given.data(), matrix.given.size());
    }
    text.put(layer.key_length);
    text.put(layer.key_centre.data(), layer.key_centre.size());
    text.put(layer.value_centre.data(), layer.value_centre.size());
    text.put(layer.order.data(), layer.order.size());
    put_choices(layer.keys, &text);
    put_choices(layer.values, &text);
  }
  std::vector<uint8_t> piece(kStatePiece);
  StateWriter out(io, piece.data());
  out.bytes_of(kMagic, sizeof kMagic);
  out.number(matrices ? kWithMatrices : kVersion);
  for (const int32_t x :
       {config_.num_layers, config_.num_q_heads, config_.num_kv_heads, config_.head_dim, config_.value_dim,
        config_.io_dtype, config_.key_family, config_.value_family, config_.held_out_tokens})
    out.number(x);
  out.number(static_cast<uint64_t>(out.mac_bytes()));
  out.number(static_cast<uint64_t>(text.bytes().size()));
  out.end_header();
  out.payload(text.bytes().data(), static_cast<int64_t>(text.bytes().size()));
  out.end();
}

Calibration::Calibration(const tq_io& io) : config_{}, current_(true) {
  std::vector<uint8_t> piece(kStatePiece);
  StateReader in(io, piece.data());
  uint8_t magic[8];
  in.bytes_of(magic, sizeof magic);
  require(memcmp(magic, kMagic, sizeof magic) == 0, "its first bytes are another file's");
  const uint32_t version = in.number<uint32_t>();
  TQ_CHECK(version == kVersion || version == kWithMatrices, Status::kIncompatible,
           "calibration: version %u, this library has %u and %u", version, kVersion, kWithMatrices);
  tq_calibration_config c = {};
  c.struct_size = sizeof c;
  for (int32_t* x : {&c.num_layers, &c.num_q_heads, &c.num_kv_heads, &c.head_dim, &c.value_dim, &c.io_dtype,
                     &c.key_family, &c.value_family, &c.held_out_tokens})
    *x = in.number<int32_t>();
  in.expect_mac(in.number<uint64_t>());
  const uint64_t total = in.number<uint64_t>();
  in.end_header();
  try {
    config_ = resolved(c);
  } catch (const Error& error) {
    throw Error(Status::kCorruptData, "calibration: %s", error.what());
  }
  require(total <= static_cast<uint64_t>(INT64_MAX), "its length");
  in.begin_payload(static_cast<int64_t>(total));
  Source source(in, total);
  const size_t keys = static_cast<size_t>(c.num_kv_heads) * static_cast<size_t>(config_.head_dim),
               values = static_cast<size_t>(c.num_kv_heads) * static_cast<size_t>(config_.value_dim);
  for (int32_t i = 0; i < config_.num_layers; i++) {
    Measured layer;
    matrices_.push_back(version == kWithMatrices ? take_matrix(source, config_, i) : KeyMatrix{});
    found_.emplace_back();
    layer.key_length = source.take<float>();
    require(isfinite(layer.key_length) && layer.key_length >= 0, "a key's length");
    layer.key_centre = source.take<float>(keys);
    layer.value_centre = source.take<float>(values);
    require_finite(layer.key_centre), require_finite(layer.value_centre);
    layer.order = source.take<int32_t>(keys);
    require_order(layer.order, config_.num_kv_heads, config_.head_dim);
    layer.keys = take_choices(source, config_.head_dim, num_bands());
    layer.values = take_choices(source, config_.value_dim, 0);
    measured_.push_back(std::move(layer));
    require_finite(given_key_centre(i));
  }
  source.end();
  in.end();
}

}  // namespace tq
