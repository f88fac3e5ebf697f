// SPDX-License-Identifier: Apache-2.0
// The wide way of long prefill: where a layer and a call have it, the sequences that are alone (work_list.h)
// go to it instead of the group kernel. That follows from the layer and the call alone, so that a graph's
// later plans, batches and lengths change nothing.
#pragma once
#include "cuda/row/params.h"

namespace tq::cuda::prefill {

struct PrefillParams;
struct WideParams;

// Any plan that the workspace is for has no more.
struct WideBounds {
  int64_t query_tokens;      // of all sequences
  int64_t sequence_queries;  // of one
  int64_t longest;           // tokens of a sequence
  int64_t most_tokens = 0;   // of all kv heads in half of the images; 0 = the usual
  int32_t least_rows = 0;    // of a kv head, of sequences that go this way; 0 = the usual
};
// Of a call; memory null: none, and the group kernel does it.
struct WideSpace {
  uint8_t* memory = nullptr;
  WideBounds bounds = {};
  // Others than the compiled ones, of a bench.
  void (*kernels)(const WideParams&, int num_ctas, cudaStream_t) = nullptr;
};

// Bytes of a layer's workspace on so many CTAs, 0 where no plan has it: coded sides of one dimension, no
// exact copies, no window of the layer's own, a device with products of warpgroups. Its contents may be
// anything. The second: the most of all layers.
int64_t wide_workspace_bytes(const Geometry& geometry, int layer, const WideBounds& bounds, int num_ctas,
                             int shared_memory_per_block);
int64_t wide_workspace_bytes(const Geometry& geometry, const WideBounds& bounds, int num_ctas,
                             int shared_memory_per_block);

// Two kernels, for the sequences of the list that have as many rows a kv head as it returns: kNotWide where
// the layer or the call has masks, a window, a cap, exact copies or other sides. Nothing is started where no
// sequence has more than most_rows, and that is fewer.
constexpr int kNotWide = INT32_MAX;
int launch_wide(const PrefillParams& params, const RowLaunch& launch, int64_t most_rows,
                const WideSpace& space);

}  // namespace tq::cuda::prefill
