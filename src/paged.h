// SPDX-License-Identifier: Apache-2.0
// A codec: the meaning of page bytes, and a backend, for engines that own pages and bookkeeping. It checks
// what the host knows and turns calls into requests, as a cache does; it has neither pages nor sequences.
#pragma once
#include "config.h"
#include "gate.h"
#include "host_block.h"
#include "paged_backend.h"

namespace tq {

class Codec {
 public:
  Codec(const tq_cache_config* config, void* stream);
  Codec(const Codec&) = delete;
  Codec& operator=(const Codec&) = delete;
  // Throws INVALID_STATE while a call runs.
  static void destroy(Codec* codec);

  // Resolved; what must be 0 is.
  tq_cache_config config() const;
  const Geometry& geometry() const { return geometry_; }
  // INVALID_ARGUMENT without such a layer.
  const LayerGeometry& layer(int32_t layer) const;
  void set_centres(int32_t layer, const float* key, const float* value);
  uint64_t fingerprint() const;
  uint64_t check(const void* stream);

  tq_page_layout page_layout(int32_t layer, int32_t block_size, int64_t num_blocks,
                             tq_page_order order) const;
  // The caller's pages of a layer, checked. name: of the argument.
  PagePool pool(int32_t layer, const tq_pages* pages, const char* name) const;

  size_t workspace_bytes(const PagedStep& bounds) const;
  void plan(const PlannedStep& step, void* stream) const;
  void append(const PlannedStep& step, const tq_pages* pages, const AppendRequest& request) const;
  void attend(const PlannedStep& step, const tq_pages* pages, const AttendRequest& request) const;
  void read(const tq_pages* pages, const SlotsRead& request) const;
  void copy(int32_t layer, const tq_pages* source, const tq_pages* target, const int64_t* pairs,
            int64_t count, void* stream) const;

 private:
  int32_t resolved_block_size(int32_t block_size, const char* name) const;
  void check_stream(const void* stream) const;
  void check_workspace_of(const PlannedStep& step) const;

  tq_cache_config stated_;  // the caller's, with room for no more than the resolver needs
  ResolvedConfig config_;
  Geometry geometry_;
  HostBlock centres_;
  std::unique_ptr<PagedBackend> backend_;
  Gate gate_;
};

}  // namespace tq
