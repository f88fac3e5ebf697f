// SPDX-License-Identifier: Apache-2.0
// A Geometry whose layers are all alike, for tests that talk to a backend or a schedule directly: the common
// fields are set here, set_layers makes the layers of them.
#pragma once
#include <vector>

#include "format/sketch.h"
#include "format/trellis.h"
#include "requests.h"

namespace tq {

struct UniformGeometry : Geometry {
  UniformGeometry() : Geometry{} { raw_group = -1; }
  UniformGeometry(const UniformGeometry& other) { *this = other; }
  UniformGeometry& operator=(const UniformGeometry& other) {
    static_cast<Geometry&>(*this) = other;
    num_q_heads = other.num_q_heads, num_kv_heads = other.num_kv_heads, q_per_kv = other.q_per_kv;
    head_dim = other.head_dim, value_dim = other.value_dim, latent = other.latent;
    rotation = other.rotation;
    key_levels = other.key_levels, value_levels = other.value_levels;
    first_kv_head = other.first_kv_head;
    key_order = other.key_order;
    own_ = other.own_;
    layers = own_.data();
    return *this;
  }

  int32_t num_q_heads = 0, num_kv_heads = 0, q_per_kv = 0;
  int32_t head_dim = 0, value_dim = 0;  // of the tile's sides
  bool latent = false;
  int32_t first_kv_head = 0;
  format::Rotation rotation = format::Rotation::kHadamard;
  const format::LevelTable *key_levels = nullptr, *value_levels = nullptr;
  const int32_t* key_order = nullptr;  // of banded keys

  int32_t input_dim() const { return latent ? value_dim + head_dim : head_dim; }
  HeadShape heads() const { return HeadShape{num_q_heads, num_kv_heads, q_per_kv}; }
  // num_layers layers of these codes in page group 0, with built-in codebooks.
  void set_layers(int key_bits, int value_bits) {
    set_layers(format::code_of_bits(key_bits), format::code_of_bits(value_bits));
  }
  void set_layers(format::CodeId key_code, format::CodeId value_code) {
    LayerGeometry layer = {};
    static_cast<HeadShape&>(layer) = heads();
    layer.head_dim = head_dim;
    layer.value_dim = value_dim;
    layer.latent = latent;
    layer.key_code = key_code;
    layer.value_code = value_code;
    const auto has_book = [](format::CodeId id) {
      return id.has_kernels() || id.family == format::CodeFamily::kRows ||
             id.family == format::CodeFamily::kScalar;
    };
    if (has_book(key_code)) layer.key_book = format::builtin_codebook(head_dim, key_code);
    if (key_code.family == format::CodeFamily::kProd) {
      layer.key_book = format::builtin_codebook(head_dim, key_code.bits - 1);
      layer.sketch_factor = format::unbiased_factor(sketch, format::stored_dim(head_dim));
    }
    layer.key_levels = key_levels, layer.value_levels = value_levels;
    layer.key_order = key_order;
    if (has_book(value_code)) layer.value_book = format::builtin_codebook(value_dim, value_code);
    layer.rotation = rotation;
    layer.first_kv_head = first_kv_head;
    own_.assign(static_cast<size_t>(num_layers), layer);
    for (int32_t i = 0; i < num_layers; i++) own_[static_cast<size_t>(i)].storage = i;
    layers = own_.data();
    num_shapes = 1;
    shapes[0] = heads();
  }

 private:
  std::vector<LayerGeometry> own_;
};

}  // namespace tq
