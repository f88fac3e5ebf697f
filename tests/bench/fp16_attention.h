// SPDX-License-Identifier: Apache-2.0
// The yardstick: decode attention over a float16 KV cache, vectorised as carefully as the library's own path.
#pragma once
#include <stdint.h>

#include "cpu/thread_pool.h"

namespace tq {
namespace bench {

// out[head][q_per_kv][128] = attention of q[head][q_per_kv][128] (already times scale * log2 e) over keys and
// values [head][tokens][128], float16. tokens is a multiple of 64; q_per_kv is 1, 2, 4 or 8. One task per
// head.
using Fp16Attention = void (*)(cpu::ThreadPool& pool, const uint16_t* keys, const uint16_t* values, int heads,
                               int64_t tokens, int q_per_kv, const float* q, float* out);

// The version for an instruction set of the CPU backend; null if there is none ("scalar" and what lacks
// float16 conversion).
Fp16Attention fp16_attention(const char* isa);

}  // namespace bench
}  // namespace tq
