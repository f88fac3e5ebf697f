// SPDX-License-Identifier: Apache-2.0
// Steps of codecs, of blocks in memory of the runner's, and of an engine's steps on them.
#pragma once
#include <map>
#include <memory>

#include "checks.h"

namespace contract {

// Bytes at a multiple of 256.
class Aligned {
 public:
  explicit Aligned(size_t bytes = 0) : bytes_(bytes), memory_(new uint8_t[bytes + 256]()) {}
  uint8_t* get() const {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory_.get()) + 255) & ~uintptr_t{255});
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  std::unique_ptr<uint8_t[]> memory_;
};

class PagedSteps : Checks {
 public:
  explicit PagedSteps(const Tensors& tensors) : Checks(tensors) {}
  ~PagedSteps() { destroy(); }
  PagedSteps(const PagedSteps&) = delete;
  PagedSteps& operator=(const PagedSteps&) = delete;

  static bool knows(const std::string& op) {
    return op == "pages" || op.compare(0, 6, "paged_") == 0 || op.compare(0, 6, "codec_") == 0;
  }
  tq_codec* codec(const Json& step) { return named(codecs_, step, "codec").handle; }
  tq_status destroy() {
    tq_status worst = TQ_OK;
    for (const auto& [name, codec] : codecs_)
      if (const tq_status status = tq_codec_destroy(codec.handle)) worst = status;
    codecs_.clear();
    return worst;
  }

  void run(const Json& step, const std::string& op) {
    if (op == "codec_create") return create(step);
    if (op == "codec_check") {
      uint64_t flags = ~uint64_t{0};
      if (expected(step, tq_codec_check(codec(step), nullptr, &flags))) expect_equal(step, flags);
      return;
    }
    if (op == "codec_centres") {
      expected(step, tq_codec_set_centres(codec(step), step.at("layer"),
                                          static_cast<const float*>(input(step, "key_centre")),
                                          static_cast<const float*>(input(step, "value_centre"))));
      return;
    }
    if (op == "pages") return pages(step);
    if (op == "paged_plan") return plan(step);
    if (op == "paged_append") return append(step);
    if (op == "paged_attend") return attend(step);
    if (op == "paged_read") return read(step);
    if (op == "paged_copy") return copy(step);
    fail("unknown op");
  }

 private:
  struct Codec {
    tq_codec* handle = nullptr;
    tq_cache_config config;
  };
  struct Blocks {
    Aligned memory;
    tq_pages c;
  };
  struct Step {
    std::vector<int64_t> slots;
    std::vector<int32_t> table, lens, starts;
    tq_paged_step c = {};
    Aligned workspace;
  };

  // The thing that a field names; without the field "main".
  template <typename T>
  static T& named(std::map<std::string, T>& things, const Json& step, const char* field) {
    const auto found = things.find(step.value(field, "main"));
    if (found == things.end()) fail(std::string("no such ") + field);
    return found->second;
  }
  // Of a layer that there is not: the first one's.
  tq_layer_config shape_of(const Json& step) {
    const tq_cache_config& config = named(codecs_, step, "codec").config;
    const int32_t layer = step.at("layer");
    return config.layers[layer >= 0 && layer < config.num_layers ? layer : 0];
  }

  void create(const Json& step) {
    const Config config(step.at("config"));
    Codec made;
    if (!expected(step, tq_codec_create(&config.c, nullptr, &made.handle))) return;
    Codec& codec = codecs_[step.value("codec", "main")] = made;
    codec.config = {};
    codec.config.struct_size = sizeof codec.config;
    if (tq_codec_get_config(codec.handle, &codec.config)) fail("tq_codec_get_config");
  }

  void pages(const Json& step) {
    tq_page_layout layout = {};
    layout.struct_size = sizeof layout;
    const int32_t block_size = step.value("block_size", 0);
    const int64_t count = step.at("num_blocks");
    if (!expected(step, tq_codec_page_layout(codec(step), step.at("layer"), block_size, count,
                                             step.value("order", TQ_PAGES_BLOCKS_FIRST), &layout)))
      return;
    expect_fields(step.at("expect"),
                  {{"total_bytes", layout.total_bytes}, {"block_head_bytes", layout.block_head_bytes}});
    Blocks& blocks = blocks_[step.at("name")];
    blocks.memory = Aligned(static_cast<size_t>(layout.total_bytes));
    blocks.c = tq_pages{sizeof(tq_pages),    block_size,        blocks.memory.get(), count,
                        layout.block_stride, layout.head_stride};
  }

  void plan(const Json& step) {
    Step& planned = steps_[step.at("step")];
    planned.slots = step.at("slot_mapping").get<std::vector<int64_t>>();
    planned.lens = step.at("seq_lens").get<std::vector<int32_t>>();
    planned.starts = step.at("query_start_loc").get<std::vector<int32_t>>();
    planned.table.clear();
    for (const Json& row : step.at("block_table"))
      for (const Json& block : row) planned.table.push_back(block);
    planned.c = {};
    planned.c.struct_size = sizeof planned.c;
    planned.c.num_reqs = static_cast<int32_t>(planned.lens.size());
    planned.c.num_tokens = static_cast<int64_t>(planned.slots.size());
    planned.c.max_query_len = step.at("max_query_len");
    planned.c.max_seq_len = step.at("max_seq_len");
    planned.c.slot_mapping = planned.slots.data();
    planned.c.block_table = planned.table.data();
    planned.c.block_table_stride = static_cast<int64_t>(step["block_table"][0].size());
    planned.c.seq_lens = planned.lens.data();
    planned.c.query_start_loc = planned.starts.data();
    size_t bytes = 0;
    tq_status status = tq_paged_workspace_bytes(codec(step), &planned.c, &bytes);
    if (status == TQ_OK) {
      planned.workspace = Aligned(bytes);
      status = tq_paged_plan(codec(step), &planned.c, planned.workspace.get(), bytes, nullptr);
    }
    expected(step, status);
  }

  // A step that was not planned has a workspace without a plan.
  Step& planned(const Json& step) {
    Step& planned = steps_[step.at("step")];
    planned.c.struct_size = sizeof planned.c;
    if (planned.workspace.bytes() == 0) planned.workspace = Aligned(1 << 20);
    return planned;
  }

  void append(const Json& step) {
    const Step& s = planned(step);
    expected(step, tq_paged_append(codec(step), step.at("layer"), &named(blocks_, step, "pages").c, &s.c,
                                   input(step, "k"), input(step, "v"), nullptr, s.workspace.get(),
                                   s.workspace.bytes(), nullptr));
  }

  void attend(const Json& step) {
    const Step& s = planned(step);
    tq_attend_params params;
    const bool given = read_attend_params(step, params);
    const tq_layer_config shape = shape_of(step);
    const int64_t rows = s.c.num_tokens * shape.num_q_heads;
    std::vector<uint8_t> out(static_cast<size_t>(rows * shape.value_dim) * 4),
        lse(static_cast<size_t>(rows) * 4);
    fill_with_nan(out);
    fill_with_nan(lse);
    if (!expected(step, tq_paged_attend(codec(step), step.at("layer"), &named(blocks_, step, "pages").c, &s.c,
                                        input(step, "q"), out.data(), reinterpret_cast<float*>(lse.data()),
                                        given ? &params : nullptr, s.workspace.get(), s.workspace.bytes(),
                                        nullptr)))
      return;
    compare(step, "out", out, TQ_F32);
    compare(step, "lse", lse, TQ_F32);
  }

  void read(const Json& step) {
    const std::vector<int64_t> slots = step.at("slots");
    const tq_layer_config shape = shape_of(step);
    const int32_t io = named(codecs_, step, "codec").config.io_dtype;
    const int64_t rows = static_cast<int64_t>(slots.size()) * shape.num_kv_heads, size = io == TQ_F32 ? 4 : 2;
    std::vector<uint8_t> k(static_cast<size_t>(rows * shape.head_dim * size)),
        v(static_cast<size_t>(rows * shape.value_dim * size));
    fill_with_nan(k);
    fill_with_nan(v);
    if (!expected(step,
                  tq_paged_read(codec(step), step.at("layer"), &named(blocks_, step, "pages").c, slots.data(),
                                static_cast<int64_t>(slots.size()), k.data(), v.data(), nullptr, nullptr)))
      return;
    compare(step, "k", k, io);
    compare(step, "v", v, io);
  }

  void copy(const Json& step) {
    std::vector<int64_t> pairs;
    for (const Json& pair : step.at("pairs"))
      for (const Json& block : pair) pairs.push_back(block);
    expected(step, tq_paged_copy(codec(step), step.at("layer"), &named(blocks_, step, "source").c,
                                 &named(blocks_, step, "target").c, pairs.data(),
                                 static_cast<int64_t>(pairs.size() / 2), nullptr));
  }

  std::map<std::string, Codec> codecs_;
  std::map<std::string, Blocks> blocks_;
  std::map<std::string, Step> steps_;
};

}  // namespace contract
