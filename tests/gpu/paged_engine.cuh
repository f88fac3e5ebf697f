// SPDX-License-Identifier: Apache-2.0
// An engine around a codec, through tqkv.h alone: pages of its own on either device, steps whose arrays lie
// where the codec's device reads them. What tests of the paged calls share.
#pragma once
#include <random>

#include "api_cache.cuh"

namespace gpu_test {

// One step as the host has made it. Sizes are the arrays'.
struct EngineStep {
  std::vector<int64_t> slots;
  std::vector<int32_t> lens, starts = {0}, table;  // table [requests][stride]
  int64_t stride = 0;
  int64_t tokens = 0;
  int32_t max_query_len = 0, max_seq_len = 0;

  int32_t requests() const { return static_cast<int32_t>(lens.size()); }
  void bound() {
    for (size_t i = 0; i < lens.size(); i++) {
      max_seq_len = std::max(max_seq_len, lens[i]);
      max_query_len = std::max(max_query_len, starts[i + 1] - starts[i]);
    }
  }
};

template <typename T>
Memory on_device(int device, const std::vector<T>& host, size_t room = 0) {
  Memory memory(device, std::max(room, host.size()) * sizeof(T));
  memory.fill(0xFF);
  if (!host.empty())
    GPU_MUST(cudaMemcpy(memory.get(), host.data(), host.size() * sizeof(T), cudaMemcpyDefault));
  return memory;
}

// Pages of every layer.
struct EngineForm {
  int32_t block_size;
  int64_t num_blocks;
  tq_page_order order;
  int64_t gap;  // bytes between blocks, or between heads; a multiple of 64
  uint8_t fill;
};

class Engine {
 public:
  Engine(tq_cache_config wanted, int device, const EngineForm& form)
      : config(wanted), form_(form), device_(device) {
    config.device_type = device;
    config.max_tokens = config.max_sequence_tokens = config.max_batch_tokens = 0;
    config.max_sequences = 0;
    API_MUST(tq_codec_create(&config, nullptr, &codec));
    API_MUST(tq_codec_get_config(codec, &config));
    for (int32_t layer = 0; layer < config.num_layers; layer++) {
      tq_page_layout layout = {};
      layout.struct_size = sizeof layout;
      API_MUST(tq_codec_page_layout(codec, layer, form.block_size, form.num_blocks, form.order, &layout));
      const bool blocks = form.order == TQ_PAGES_BLOCKS_FIRST;
      tq_pages p = {};
      p.struct_size = sizeof p;
      p.block_size = form.block_size;
      p.num_blocks = form.num_blocks;
      p.block_stride = layout.block_stride + form.gap;
      const int heads = config.layers ? 0 : config.num_kv_heads;
      const int64_t num_heads = heads > 0 ? heads : layout.block_bytes / layout.block_head_bytes;
      p.head_stride = blocks ? layout.head_stride : form.num_blocks * p.block_stride + form.gap;
      const int64_t bytes = std::max(form.num_blocks * p.block_stride, num_heads * p.head_stride);
      memory.emplace_back(device, static_cast<size_t>(bytes));
      memory.back().fill(form.fill);
      p.base = memory.back().get();
      pages.push_back(p);
    }
  }
  ~Engine() { check(tq_codec_destroy(codec) == TQ_OK, "tq_codec_destroy: %s", tq_last_error()); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Arrays to the device and a plan in a workspace that held rubbish. more: what its bounds are larger by.
  void plan(const EngineStep& s, int more = 0) {
    slots_ = on_device(device_, s.slots);
    lens_ = on_device(device_, s.lens);
    starts_ = on_device(device_, s.starts);
    table_ = on_device(device_, s.table);
    step = {};
    step.struct_size = sizeof step;
    step.num_reqs = s.requests();
    step.num_tokens = s.tokens;
    step.max_query_len = s.max_query_len + more;
    step.max_seq_len = s.max_seq_len;
    step.slot_mapping = s.slots.empty() ? nullptr : slots_.as<int64_t>();
    step.block_table = s.table.empty() ? nullptr : table_.as<int32_t>();
    step.block_table_stride = s.stride;
    step.seq_lens = s.lens.empty() ? nullptr : lens_.as<int32_t>();
    step.query_start_loc = s.lens.empty() ? nullptr : starts_.as<int32_t>();
    size_t bytes = 0;
    API_MUST(tq_paged_workspace_bytes(codec, &step, &bytes));
    workspace = Memory(device_, bytes);
    workspace.fill(0xA7);
    API_MUST(tq_paged_plan(codec, &step, workspace.get(), bytes, nullptr));
  }
  void append(int layer, const void* k, const void* v, const Rows& key_form, const Rows& value_form) {
    tq_tensor_layout layout = {sizeof layout,           0,
                               key_form.token_stride,   key_form.head_stride,
                               value_form.token_stride, value_form.head_stride};
    API_MUST(tq_paged_append(codec, layer, &pages[static_cast<size_t>(layer)], &step, k, v, &layout,
                             workspace.get(), workspace.size(), nullptr));
  }
  // All rows, padding too.
  AttendOutput attend(int layer, const void* q, tq_attend_params params, int q_heads, int value_dim) {
    const size_t rows = static_cast<size_t>(step.num_tokens) * static_cast<size_t>(q_heads);
    Memory out(device_, rows * static_cast<size_t>(value_dim) * 4), lse(device_, rows * 4);
    out.fill(0xFF);
    lse.fill(0xFF);
    params.out_dtype = TQ_F32;
    API_MUST(tq_paged_attend(codec, layer, &pages[static_cast<size_t>(layer)], &step, q, out.get(),
                             lse.as<float>(), &params, workspace.get(), workspace.size(), nullptr));
    return AttendOutput{out.floats(), lse.floats()};
  }
  // Decoded keys, then values.
  std::vector<uint8_t> read(int layer, const std::vector<int64_t>& slots, int64_t key_row,
                            int64_t value_row) {
    const Memory at = on_device(device_, slots);
    std::vector<uint8_t> all;
    for (int side = 0; side < 2; side++) {
      Memory rows(device_, slots.size() * static_cast<size_t>(side ? value_row : key_row) *
                               static_cast<size_t>(api_dtype_bytes(config.io_dtype)));
      rows.fill(0xFF);
      API_MUST(tq_paged_read(codec, layer, &pages[static_cast<size_t>(layer)], at.as<int64_t>(),
                             static_cast<int64_t>(slots.size()), side ? nullptr : rows.get(),
                             side ? rows.get() : nullptr, nullptr, nullptr));
      const std::vector<uint8_t> bytes = rows.host();
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }
  uint64_t noticed() {
    uint64_t flags = 0;
    API_MUST(tq_codec_check(codec, nullptr, &flags));
    return flags;
  }

  tq_cache_config config;  // resolved
  tq_codec* codec = nullptr;
  std::vector<tq_pages> pages;
  std::vector<Memory> memory;
  tq_paged_step step = {};
  Memory workspace;

 private:
  EngineForm form_;
  int device_;
  Memory slots_, lens_, starts_, table_;
};

}  // namespace gpu_test
