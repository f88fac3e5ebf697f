// SPDX-License-Identifier: Apache-2.0
// What a case of attend_case.cuh is made of.
#pragma once
#include <vector>

#include "cuda/attend/launch.h"
#include "cuda/prefill/launch.h"
#include "cuda/schedule/work_list.h"

namespace gpu_test {

using tq::DataType;

struct CaseSequence {
  int length, new_tokens, queries;
};

// A query row of which one coordinate is set.
struct OddQuery {
  int64_t row;
  int head;
  float value;
};

struct CaseSpec {
  int head_dim = 128, value_dim = 128, key_bits = 4, value_bits = 4;
  int q_heads = 8, kv_heads = 2, page_size = 64;
  DataType io = DataType::kF16, out = DataType::kF32;
  std::vector<CaseSequence> sequences;
  int window = 0, sinks = 0, rollback = 0;
  bool centres = false, sink_logits = false, history_only = false;
  float softcap = 0, scale = 0;  // 0 = 1 / sqrt(head_dim)
  int64_t sliding = 0;
  int pad = 0;          // extra elements of q and out strides
  float spread = 1.0f;  // of the logits
  uint32_t seed = 1;
  int ctas = 0;  // 0 = the device's
  tq::cuda::attend::AttendTuning tuning = {};
  bool pages_in_order = false, long_apart = false;  // long sequences by the prefill kernel
  int few = 0;          // sequences that get clusters, 0 = none, -1 = as the plan says
  int value_range = 0;  // value scales are spread over so many powers of two
  // Long sequences that are alone by the wide way; tokens of half of its images, 0 = as many as a cache has
  bool wide = true;
  int64_t wide_tokens = 0;
  int32_t wide_rows = tq::cuda::kSharedRows;  // of a kv head, from which on they go; 0 = the usual
  decltype(tq::cuda::prefill::WideSpace::kernels) wide_kernels = nullptr;  // others than the compiled ones
  bool batch_invariant = false;
  bool unappended = false;  // the plan's new tokens are not written anywhere; with history_only
  std::vector<OddQuery> odd_queries = {};
  std::vector<float> sink_values = {};               // of the query heads in turn, instead of random ones
  bool ranges = false, tree = false, alibi = false;  // random masks (masks.h)
  int range_kind = -1;
  bool trellis = false;  // sides of 2 to 4 bits, else scalar

  tq::format::CodeId code(int bits) const {
    return trellis && bits <= 4 ? tq::format::trellis_code(bits) : tq::format::code_of_bits(bits);
  }
};

}  // namespace gpu_test
