// SPDX-License-Identifier: Apache-2.0
// See paged_twin.h.
#include "paged_twin.h"

#include <gtest/gtest.h>
#include <string.h>

#include <algorithm>
#include <limits>

#include "format/token_mask.h"

namespace tq {
namespace test {
namespace {

std::unique_ptr<uint8_t, decltype(&::free)> filled(size_t bytes, uint8_t fill) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes) != 0) abort();
  memset(memory, fill, bytes);
  return {static_cast<uint8_t*>(memory), &::free};
}

const HostOps kOps = {nullptr,
                      [](void*, size_t bytes, size_t alignment, int32_t, int32_t) -> void* {
                        return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
                      },
                      [](void*, void* pointer, size_t, int32_t, int32_t) { free(pointer); }};

}  // namespace

PagedTwin::PagedTwin(const Rig& rig, const TwinOptions& options)
    : rig_(rig), options_(options), geometry_(rig.geometry), workspace_(nullptr, &::free) {
  UniformGeometry& g = geometry_;
  num_blocks = g.groups[0].num_pages + 1;  // block 0 is nobody's
  g.groups[0].num_pages = 0;
  if (options.threads > 0) g.num_threads = options.threads;
  backend_ = cpu::create_cpu_paged_backend(g, kOps, rig.config.isa.c_str());
  const int32_t tiles = g.tiles_per_page();
  for (int layer = 0; layer < g.num_layers; layer++) {
    const int32_t tile_bytes = g.tile(layer).tile_bytes();
    const int64_t bytes = static_cast<int64_t>(tiles) * tile_bytes + options.gap;
    const int64_t block = options.heads_first ? bytes : bytes * g.num_kv_heads + options.gap,
                  head = options.heads_first ? bytes * num_blocks + options.gap : bytes;
    memory_.push_back(filled(static_cast<size_t>(block * num_blocks + head * g.num_kv_heads), options.fill));
    pools_.push_back(PagePool{{memory_.back().get(), block, head, tile_bytes, tiles}, num_blocks});
    if (rig.config.centres)
      backend_->set_centres(layer, rig.centre(Kind::kKey).data(), rig.centre(Kind::kValue).data());
  }
  for (int64_t i = num_blocks - 1; i > 0; i--)
    free_blocks_.push_back(static_cast<int32_t>(i * 7 % num_blocks));
  std::sort(free_blocks_.begin(), free_blocks_.end());
  free_blocks_.erase(std::unique(free_blocks_.begin(), free_blocks_.end()), free_blocks_.end());
  Random random(5);
  for (size_t i = free_blocks_.size(); i > 1; i--)
    std::swap(free_blocks_[i - 1], free_blocks_[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
  blocks_.resize(static_cast<size_t>(rig.config.max_sequences));
}

int64_t PagedTwin::slot(int sequence, int64_t token) const {
  const int64_t size = geometry_.page_size;
  return blocks_[static_cast<size_t>(sequence)][static_cast<size_t>(token / size)] * size + token % size;
}

uint8_t* PagedTwin::tile(int sequence, int head, int64_t index) const {
  return pools_[0].pages.sequence_tile(blocks_[static_cast<size_t>(sequence)].data(), head, index);
}

PlannedStep PagedTwin::plan(const PagedStep& step) {
  step_ = step;
  PagedStep bounds = step;
  bounds.num_reqs += options_.more_reqs;
  bounds.num_tokens += options_.more_reqs;
  bounds.max_seq_len += options_.more_seq_len;
  const size_t bytes = static_cast<size_t>(backend_->workspace_bytes(bounds));
  EXPECT_GE(bytes, static_cast<size_t>(backend_->workspace_bytes(step)));
  workspace_ = filled(bytes, options_.fill);
  const PlannedStep planned = {&step_, workspace_.get(), bytes};
  backend_->plan(planned, nullptr);
  return planned;
}

void PagedTwin::append() {
  const StepRows& rows = rig_.plan().rows;
  const int64_t tokens = rows.new_tokens + options_.padding_tokens;
  std::vector<int64_t> slots(static_cast<size_t>(tokens), -1);
  for (int32_t i = 0; i < rows.num_sequences; i++) {
    const StepSequence& s = rows.sequences[i];
    std::vector<int32_t>& blocks = blocks_[static_cast<size_t>(s.page_row)];
    while (static_cast<int64_t>(blocks.size()) * geometry_.page_size < s.length()) {
      blocks.push_back(free_blocks_.back());
      free_blocks_.pop_back();
    }
    for (int64_t token = s.old_length; token < s.length(); token++)
      slots[static_cast<size_t>(s.kv_row + token - s.old_length)] = slot(s.page_row, token);
  }
  PagedStep step = {};
  step.num_tokens = tokens;
  step.slot_mapping = slots.data();
  const PlannedStep planned = plan(step);
  AppendRequest request = rig_.appended();
  request.plan = nullptr;
  for (request.layer = 0; request.layer < geometry_.num_layers; request.layer++)
    backend_->append(planned, pool(request.layer), request);
}

Result PagedTwin::attend(int64_t stale_front) {
  const StepRows& rows = rig_.plan().rows;
  const UniformGeometry& g = geometry_;
  const int32_t reqs = rows.num_sequences + options_.padding_reqs;
  const int64_t tokens = rows.query_tokens + options_.padding_tokens;
  constexpr int32_t kRubbish[] = {-1, std::numeric_limits<int32_t>::max(),
                                  std::numeric_limits<int32_t>::min()};
  std::vector<int32_t> lens(static_cast<size_t>(reqs), 0), start(1, 0);
  PagedStep step = {};
  step.num_reqs = reqs;
  step.num_tokens = tokens;
  for (int32_t i = 0; i < reqs; i++) {
    const bool real = i < rows.num_sequences;
    const int32_t queries = real            ? static_cast<int32_t>(rows.sequences[i].query_tokens)
                            : i == reqs - 1 ? 1
                                            : 0;
    lens[static_cast<size_t>(i)] = real ? static_cast<int32_t>(rows.sequences[i].length()) : 0;
    start.push_back(start.back() + queries);
    step.max_seq_len = std::max(step.max_seq_len, lens[static_cast<size_t>(i)]);
    step.max_query_len = std::max(step.max_query_len, queries);
  }
  step.block_table_stride = (step.max_seq_len + g.page_size - 1) / g.page_size + 2;
  std::vector<int32_t> table(static_cast<size_t>(reqs * step.block_table_stride));
  for (size_t i = 0; i < table.size(); i++) table[i] = kRubbish[i % 3];
  for (int32_t i = 0; i < rows.num_sequences; i++) {
    const int64_t used = (rows.sequences[i].length() + g.page_size - 1) / g.page_size;
    for (int64_t j = stale_front; j < used; j++)
      table[static_cast<size_t>(i * step.block_table_stride + j)] =
          blocks_[static_cast<size_t>(rows.sequences[i].page_row)][static_cast<size_t>(j)];
  }
  step.block_table = table.data();
  step.seq_lens = lens.data();
  step.query_start_loc = start.data();
  const PlannedStep planned = plan(step);

  AttendRequest request = rig_.attended();
  request.plan = nullptr;
  request.workspace = nullptr;
  const int element = dtype_bytes(g.io_dtype);
  // NaN, or in bits what is one in every type, in the rows of padding.
  std::vector<uint8_t> q(static_cast<size_t>(tokens * request.q_strides.token * element), 0xFF);
  memcpy(q.data(), request.q, static_cast<size_t>(rows.query_tokens * request.q_strides.token * element));
  request.q = q.data();
  Result all;
  all.out.assign(static_cast<size_t>(tokens * g.num_q_heads * g.value_dim), -3);
  all.lse.assign(static_cast<size_t>(tokens * g.num_q_heads), -3);
  request.out = all.out.data();
  request.out_strides = {static_cast<int64_t>(g.num_q_heads) * g.value_dim, g.value_dim};
  request.out_dtype = DataType::kF32;
  request.lse = all.lse.data();
  backend_->attend(planned, pool(request.layer), request);
  const size_t real = static_cast<size_t>(rows.query_tokens * g.num_q_heads);
  for (size_t row = real; row < all.lse.size(); row++) {
    EXPECT_EQ(-std::numeric_limits<float>::infinity(), all.lse[row]) << "row of padding " << row;
    for (int c = 0; c < g.value_dim; c++)
      EXPECT_EQ(0.0f, all.out[row * static_cast<size_t>(g.value_dim) + static_cast<size_t>(c)]);
  }
  all.lse.resize(real);
  all.out.resize(real * static_cast<size_t>(g.value_dim));
  return all;
}

std::string PagedTwin::different_tiles() const {
  const format::TileLayout layout = geometry_.tile(0);
  for (int sequence = 0; sequence < rig_.config.max_sequences; sequence++)
    for (int64_t tile = 0; tile * format::kTileTokens < rig_.length(sequence); tile++)
      for (int head = 0; head < geometry_.num_kv_heads; head++) {
        const int64_t left = rig_.length(sequence) - tile * format::kTileTokens;
        const format::TileTokens tokens = {static_cast<int32_t>(std::min<int64_t>(left, format::kTileTokens)),
                                           0, 0};
        const uint8_t *theirs = rig_.tile(sequence, head, tile), *own = this->tile(sequence, head, tile);
        for (int word = 0; word < layout.tile_bytes() / 4; word++) {
          uint32_t a, b;
          memcpy(&a, theirs + 4 * word, 4);
          memcpy(&b, own + 4 * word, 4);
          if ((a ^ b) & format::tile_word_mask(layout, word, tokens))
            return "sequence " + std::to_string(sequence) + ", tile " + std::to_string(tile) + ", head " +
                   std::to_string(head) + ", word " + std::to_string(word);
        }
      }
  return "";
}

}  // namespace test
}  // namespace tq
