// SPDX-License-Identifier: Apache-2.0
// The configuration that tests of single fields start from: everything that must be given, and no more.
#pragma once
#include <tqkv.h>

namespace tq {

inline tq_cache_config small_config(int layers) {
  tq_cache_config c = {};
  c.struct_size = sizeof c;
  c.num_layers = layers, c.num_q_heads = 8, c.num_kv_heads = 2, c.head_dim = 128, c.io_dtype = TQ_F32;
  c.key_bits = 3, c.value_bits = 4, c.max_tokens = 1000;
  return c;
}

}  // namespace tq
