// SPDX-License-Identifier: Apache-2.0
// Centres of a layer as a call brings them, and as its sides take them: of a latent layer the caller's key
// centre has the coordinates of both. What is not rotated has no centre, so none is kept for it: the
// fingerprint follows.
#pragma once
#include <math.h>

#include <vector>

#include "requests.h"
#include "status.h"

namespace tq {

class SideCentres {
 public:
  // On the host: key [num_kv_heads][input_dim], value [num_kv_heads][value_dim], each or null (unchanged).
  SideCentres(const LayerGeometry& l, int32_t layer, const float* key, const float* value)
      : key_(key), value_(value) {
    check("key_centre", l, key, l.input_dim());
    TQ_CHECK(!l.latent || !value, Status::kInvalidArgument,
             "value_centre = %p: must be NULL, the values of layer %d are the first %d coordinates of its "
             "keys (TQ_LATENT), and so is their centre",
             static_cast<const void*>(value), layer, l.value_dim);
    check("value_centre", l, value, l.value_dim);
    if (l.latent && key) split(l, key);
    if (!l.key_code.rotated()) key_ = nullptr;
    if (!l.value_code.rotated()) value_ = nullptr;
  }

  // [num_kv_heads][dim of the side], or null
  const float* key() const { return key_; }
  const float* value() const { return value_; }

 private:
  static void check(const char* name, const LayerGeometry& l, const float* centre, int32_t dim) {
    for (int64_t i = 0; centre && i < static_cast<int64_t>(l.num_kv_heads) * dim; i++)
      TQ_CHECK(isfinite(centre[i]), Status::kInvalidArgument, "%s[%lld][%lld] = %g: must be finite", name,
               static_cast<long long>(i / dim), static_cast<long long>(i % dim),
               static_cast<double>(centre[i]));
  }
  void split(const LayerGeometry& l, const float* key) {
    const size_t heads = static_cast<size_t>(l.num_kv_heads), dim = static_cast<size_t>(l.input_dim());
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      std::vector<float>& part = parts_[static_cast<int>(kind)];
      for (size_t head = 0; head < heads; head++) {
        const float* from = key + head * dim + l.input_offset(kind);
        part.insert(part.end(), from, from + l.dim(kind));
      }
    }
    key_ = parts_[0].data();
    value_ = parts_[1].data();
  }

  std::vector<float> parts_[2];
  const float *key_, *value_;
};

}  // namespace tq
