// SPDX-License-Identifier: Apache-2.0
// FlashInfer's XQA kernel for FP8 caches on Hopper under a C name, for peer_xqa.py, which compiles this
// beside mha_sm90.cu and tensorMap.cpp of an installed flashinfer-python (Apache-2.0) and with its flags.
// What is passed is what xqa_wrapper.cu there passes: pages as [page][kv head][token][head_dim] of
// float8_e4m3, queries and output in float16.
#include "mha.h"

extern "C" __attribute__((visibility("default"))) void tq_peer_xqa(
    uint32_t units, uint32_t kv_heads, uint32_t batch, uint32_t most_tokens, void* out, const void* q,
    void* k_pages, void* v_pages, const int32_t* table, const uint32_t* lengths, uint64_t page_stride,
    uint64_t token_stride, uint64_t head_stride, uint32_t* semaphores, void* scratch, void* stream) {
  launchHopperF8MHAFlashInfer(units, kv_heads, 0, 1.0f, nullptr, static_cast<OutputHead*>(out),
                              static_cast<const InputHead*>(q), nullptr, static_cast<GMemCacheHead*>(k_pages),
                              static_cast<GMemCacheHead*>(v_pages), table, most_tokens, lengths, batch, 1.0f,
                              nullptr, semaphores, scratch, true, page_stride, token_stride, head_stride,
                              static_cast<cudaStream_t>(stream));
}
