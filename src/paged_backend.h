// SPDX-License-Identifier: Apache-2.0
// The seam between a codec and a device: verbs over pages and step arrays that belong to an engine.
//
// Unlike backend.h the core knows no lengths and no page ids here: what varies lies in arrays on the device,
// and only the device reads them. Numbers that the host has (counts, bounds, strides, addresses) are checked
// before a verb is called; what the arrays hold is the backend's to check.
#pragma once
#include <memory>

#include "backend.h"

namespace tq {

struct HostOps;

// One step of an engine. Shapes: tq_paged_step in tqkv.h.
struct PagedStep {
  int32_t num_reqs;
  int32_t max_query_len, max_seq_len;
  int64_t num_tokens;
  const int64_t* slot_mapping;  // device, or null: no append
  const int32_t* block_table;   // device, or null: no attend
  int64_t block_table_stride;
  const int32_t *seq_lens, *query_start_loc;  // device, or null: no attend
};

// An engine's pages of one layer.
struct PagePool {
  CodePages pages;
  int64_t num_blocks;

  int64_t block_size() const { return static_cast<int64_t>(pages.tiles_per_page) * format::kTileTokens; }
};

// A step with the workspace that has its plan.
struct PlannedStep {
  const PagedStep* step;
  void* workspace;
  size_t workspace_bytes;
};

struct SlotsRead {
  int32_t layer;
  const int64_t* slots;  // device [count]; -1: zeros
  int64_t count;
  void *k, *v;  // as ReadRequest
  TensorStrides key_strides, value_strides;
  void* stream;
};

class PagedBackend {
 public:
  virtual ~PagedBackend() = default;

  virtual void set_centres(int layer, const float* key, const float* value) = 0;
  // Grows with each of the step's bounds.
  virtual int64_t workspace_bytes(const PagedStep& bounds) const = 0;
  virtual void plan(const PlannedStep& step, void* stream) = 0;
  // request: all but the plan.
  virtual void append(const PlannedStep& step, const PagePool& pool, const AppendRequest& request) = 0;
  // request: all but plan, workspace and pages.
  virtual void attend(const PlannedStep& step, const PagePool& pool, const AttendRequest& request) = 0;
  virtual void read(const PagePool& pool, const SlotsRead& request) = 0;
  // pairs: device [count][2]; block sizes are equal.
  virtual void copy(const PagePool& source, const PagePool& target, int32_t num_kv_heads,
                    const int64_t* pairs, int64_t count, void* stream) = 0;
  virtual uint64_t check(void* stream) = 0;
};

// backend_select.cpp. Throws tq::Error.
std::unique_ptr<PagedBackend> create_paged_backend(DeviceType type, const Geometry& geometry,
                                                   const HostOps& ops, void* stream);

}  // namespace tq
