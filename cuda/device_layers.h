// SPDX-License-Identifier: Apache-2.0
// What a cache and a codec have in common on a device: layers with their tables and centres, the numbers of
// the device that launches follow from, and append and attend of a layer, whoever has planned them.
#pragma once
#include <vector>

#include "cuda/append/params.h"
#include "cuda/arena.h"
#include "cuda/attend/launch.h"
#include "cuda/prefill/launch_wide.h"
#include "key_matrix.h"

namespace tq {
namespace cuda {

// Workspace of a call: the decode kernel's, whose counters are zeros between calls, behind it the latent
// layers', and that of the wide way of long prefill.
int64_t latent_place(const Geometry& geometry, int num_units);
int64_t wide_place(const Geometry& geometry, int num_units);
// Any plan of a cache.
prefill::WideBounds wide_bounds(const Geometry& geometry);
int64_t workspace_capacity(const Geometry& geometry, int num_units);

class DeviceLayers {
 protected:
  // For plans of the geometry's bounds, or none: the caller's.
  enum WorkspaceChoice { kOwnWorkspace, kNoWorkspace };

  // Of the current device. Waits for the stream.
  DeviceLayers(const Geometry& geometry, const HostOps& ops, void* pool, WorkspaceChoice workspace,
               cudaStream_t stream);

  DeviceLayer layer_view(int layer) const;
  // As Backend has them. Of a layer that reads another one's tokens nothing is set: the other's serve it.
  void set_layer_centres(int layer, const float* key, const float* value);
  void set_layer_matrix(int layer, const KeyMatrix& matrix, const float* key, const float* value);
  // One launch, or one for each side. entries: of plan.small_jobs that may be read. tiles: with new tokens,
  // as far as the host knows.
  void append_tokens(const DeviceLayer& layer, const DevicePlan& plan, int32_t entries, int64_t tiles,
                     const AppendRequest& request) const;
  // The same of listed tiles whose tokens have exact copies: entries of plan.small_jobs are all of them.
  void encode_copies(const DeviceLayer& layer, const DevicePlan& plan, int32_t entries,
                     cudaStream_t stream) const;
  // Of the current device. clear: the workspace's counters may be anything.
  attend::AttendLaunch attend_launch(const DeviceLayer& layer, const DevicePlan& plan,
                                     const AttendRequest& request, bool clear) const;
  // Waits for the stream; returns and clears the flags noticed since the last call; throws the sticky
  // asynchronous error.
  uint64_t check_layers(void* stream);
  // Waits for the device, whose errors are nobody's business any more.
  void drain_device() const noexcept;

  std::vector<LayerGeometry> layers_;
  Geometry geometry_;
  HostOps ops_;
  int num_units_, shared_memory_per_block_;
  bool paced_;                       // copies of attention are limited
  bool early_;                       // kernels may be launched early
  std::vector<uint8_t> long_apart_;  // [num_layers] the prefill kernel takes long sequences
  std::vector<uint8_t> few_fits_;    // [num_layers] plans of few blocks go to clusters
  Arena arena_;
  std::vector<uint8_t> has_centre_;  // [num_layers][key, value], of layers that store tokens

 private:
  // Of a layer with key matrices: these, as DeviceLayer has them, then both centres, so that one copy sets
  // all. Taken once, since graphs hold the address, and filled anew from then on.
  struct MatrixSpace {
    DeviceBlock block;
    KeyMatrix matrix;  // which turns centres
  };
  const MatrixSpace* matrix_space(int layer) const {
    const MatrixSpace& space = matrices_[layers_[layer].storage];
    return space.matrix.empty() ? nullptr : &space;
  }
  // Where a side's centre is, or null for one that has none.
  float* centre_place(int layer, Kind kind) const;
  // A centre as kernels want it: of keys turned, and of keys in bands by place.
  void fill_centre(int layer, Kind kind, const KeyMatrix* matrix, const float* given, float* to) const;

  std::vector<MatrixSpace> matrices_;  // [num_layers]
  // params: their sides are filled in.
  void append_sides(append::AppendParams& params, int64_t tiles, cudaStream_t stream) const;
};

}  // namespace cuda
}  // namespace tq
