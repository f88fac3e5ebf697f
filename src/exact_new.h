// SPDX-License-Identifier: Apache-2.0
// Attention to a plan's own new tokens as the caller's numbers instead of their codes (TQ_FLAG_EXACT_CHUNK).
// They are appended to the raw layers of a small cache of the batch's own, whose sequences are the new tokens
// alone, and attended to there; what its rows lack, the history, is attended to over codes and merged by LSE.
// So every device and every kind of code has it, and causality, windows and soft caps are those of any layer.
#pragma once
#include <functional>
#include <vector>

#include "cache.h"

namespace tq {

class ExactNew {
 public:
  // For a batch of a cache of this configuration.
  ExactNew(const ResolvedConfig& config, BackendFactory factory);
  ~ExactNew();
  ExactNew(const ExactNew&) = delete;
  ExactNew& operator=(const ExactNew&) = delete;

  // Reasons against the flag in a configuration that is resolved but for it.
  static void check(const tq_cache_config& config, const std::vector<LayerGeometry>& layers,
                    ReasonList& reasons);
  // Follows the batch's plan; out of force until it has returned.
  void plan(const StepRows& rows, void* stream);
  // An earlier plan that is in force again.
  void retire() noexcept { in_force_ = false; }
  // request: complete; history: attends a copy of it to codes.
  void attend(const AttendRequest& request, const NewTensors& given, bool capturing,
              const std::function<void(const AttendRequest&)>& history);

 private:
  const ResolvedConfig& of_;
  std::vector<int32_t> layer_of_;  // [num_layers] the raw layer of its shape
  std::unique_ptr<Cache> cache_;
  std::unique_ptr<DeviceMemory> space_;  // two arrays of LSEs, then the history's outputs
  Batch* batch_ = nullptr;
  std::vector<int64_t> sequences_, counts_, queries_;
  int32_t used_ = 0;  // sequences that may hold tokens
  bool in_force_ = false, fits_ = false;
};

}  // namespace tq
