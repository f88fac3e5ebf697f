// SPDX-License-Identifier: Apache-2.0
// An engine beside a Rig: its own pages in an order and with gaps of its choice, block tables whose unused
// entries are rubbish, slots, padding. It does with the paged verbs what the rig's last step did with a
// cache's.
#pragma once
#include "paged_backend.h"
#include "rig.h"

namespace tq {
namespace test {

struct TwinOptions {
  bool heads_first = false;
  int64_t gap = 0;      // bytes between blocks and heads, a multiple of 64
  uint8_t fill = 0xFF;  // what unwritten pages and workspaces hold
  int padding_reqs = 2, padding_tokens = 3;
  int32_t more_seq_len = 0, more_reqs = 0;  // what the workspace is larger for
  int threads = 0;                          // 0: the rig's
};

class PagedTwin {
 public:
  PagedTwin(const Rig& rig, const TwinOptions& options);

  // The rig's last plan: its new tokens into slots.
  void append();
  // The rig's last attend. Rows of padding are checked and left out. stale_front: entries of the first blocks
  // of every row are rubbish.
  Result attend(int64_t stale_front = 0);
  // Tiles of the rig's sequences that differ here, as text; tokens beyond a length do not count.
  std::string different_tiles() const;

  uint8_t* tile(int sequence, int head, int64_t index) const;
  int64_t slot(int sequence, int64_t token) const;
  const PagePool& pool(int layer) const { return pools_[static_cast<size_t>(layer)]; }
  PagedBackend& backend() { return *backend_; }
  // A planned step in a workspace that lives until the next one.
  PlannedStep plan(const PagedStep& step);

  int64_t num_blocks = 0;

 private:
  const Rig& rig_;
  const TwinOptions options_;
  UniformGeometry geometry_;
  std::unique_ptr<PagedBackend> backend_;
  std::vector<std::unique_ptr<uint8_t, decltype(&::free)>> memory_;
  std::vector<PagePool> pools_;
  std::vector<int32_t> free_blocks_;
  std::vector<std::vector<int32_t>> blocks_;  // of the rig's sequences
  std::unique_ptr<uint8_t, decltype(&::free)> workspace_;
  PagedStep step_ = {};  // the one planned last
};

}  // namespace test
}  // namespace tq
