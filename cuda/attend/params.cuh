// SPDX-License-Identifier: Apache-2.0
// What an attend kernel is given, by value. Everything that changes from step to step lies behind pointers
// (graphs replay the parameters as they were).
#pragma once
#include "cuda/device_view.h"
#include "cuda/schedule/work_list.h"
#include "cuda/code/tables.h"
#include "cuda/attend/layout.cuh"

namespace tq {
namespace cuda {

struct AttendParams {
  DeviceLayer layer;
  const CtaWork* ctas = {};
  const SequenceWork* sequences = {};
  const int32_t* page_table = {};
  int64_t page_table_stride = {};
  const void* q = {};
  void* out = {};
  float* lse = {};
  TensorStrides q_strides = {}, out_strides = {};
  DataType out_dtype = {};
  float scale_log2 = {};        // |softmax_scale| * log2 e
  float query_sign = {};        // sign of softmax_scale
  float softcap_log2 = {};      // c * log2 e, 0 = off
  int32_t sliding_window = {};  // tokens; INT32_MAX = all
  int32_t history_only = {};
  const float* sink_logits = {};
  int32_t* counters = {};
  float* slots = {};
  int32_t whole_steps = {};  // 1: a step's tiles are always in one page
  int32_t page_shift = {};   // log2 of tiles_per_page, or -1
  float query_max = {};      // integers of a query row: -query_max .. query_max
  ByteTable key_table = {}, value_table = {};
  SmemPlan plan = {};
};

}  // namespace cuda
}  // namespace tq
