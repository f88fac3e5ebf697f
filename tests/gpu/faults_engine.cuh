// SPDX-License-Identifier: Apache-2.0
// The part of faults_test.cu that is an engine's: a codec, its pages and one step.
#pragma once
#include <string>

#include "api_cache.cuh"

namespace gpu_test {

struct FaultyEngine {
  static constexpr int kBlocks = 4, kRows = 6, kDim = 32;
  tq_codec* codec = nullptr;
  tq_pages pages = {};
  tq_paged_step step = {};
  Memory blocks{TQ_DEVICE_CUDA, 1 << 15}, arrays{TQ_DEVICE_CUDA, 512}, workspace,
      out{TQ_DEVICE_CUDA, kRows * 2 * kDim * 4};

  FaultyEngine() {
    struct {
      int64_t slots[kRows] = {40, 41, 42, -1, 7, 64}, pairs[2] = {1, 3};
      int32_t table[2][2] = {{1, 0}, {0, -1}}, lens[2] = {11, 0}, starts[3] = {0, 4, 5};
    } host;
    GPU_MUST(cudaMemcpy(arrays.get(), &host, sizeof host, cudaMemcpyHostToDevice));
    const auto at = [&](const void* member) {
      return arrays.as<uint8_t>() + (static_cast<const uint8_t*>(member) - reinterpret_cast<uint8_t*>(&host));
    };
    step = {sizeof step,
            2,
            kRows,
            4,
            64,
            reinterpret_cast<const int64_t*>(at(host.slots)),
            reinterpret_cast<const int32_t*>(at(host.table)),
            2,
            reinterpret_cast<const int32_t*>(at(host.lens)),
            reinterpret_cast<const int32_t*>(at(host.starts))};
    pairs = reinterpret_cast<const int64_t*>(at(host.pairs));
    size_t bytes = 0;  // they depend on the device
    API_MUST(create());
    API_MUST(tq_paged_workspace_bytes(codec, &step, &bytes));
    API_MUST(tq_codec_destroy(codec));
    codec = nullptr;
    workspace = Memory(TQ_DEVICE_CUDA, bytes);
    blocks.fill(0x11), workspace.fill(0xFF), out.fill(0);
    pages.struct_size = sizeof pages;
    pages.base = blocks.get();
    pages.num_blocks = kBlocks;
  }
  const int64_t* pairs;

  tq_status create() {
    tq_cache_config config = api_config(kDim, kDim, 4, 3, 2, 1, TQ_F32);
    config.device_type = TQ_DEVICE_CUDA;
    config.page_size = 32;
    return tq_codec_create(&config, nullptr, &codec);
  }
  tq_status plan() { return tq_paged_plan(codec, &step, workspace.get(), workspace.size(), nullptr); }
  tq_status append(const void* rows) {
    return tq_paged_append(codec, 0, &pages, &step, rows, rows, nullptr, workspace.get(), workspace.size(),
                           nullptr);
  }
  tq_status attend(const void* rows) {
    return tq_paged_attend(codec, 0, &pages, &step, rows, out.get(), nullptr, nullptr, workspace.get(),
                           workspace.size(), nullptr);
  }
  tq_status read() {
    return tq_paged_read(codec, 0, &pages, step.slot_mapping, kRows, out.get(), nullptr, nullptr, nullptr);
  }
  tq_status copy() { return tq_paged_copy(codec, 0, &pages, &pages, pairs, 1, nullptr); }
  void see(std::string* all) const {
    for (const Memory* memory : {&blocks, &out}) {
      const std::vector<uint8_t> bytes = memory->host();
      all->append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
  }
};

}  // namespace gpu_test
