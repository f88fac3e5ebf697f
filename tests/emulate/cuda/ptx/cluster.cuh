// SPDX-License-Identifier: Apache-2.0
// CTAs that run together.
#pragma once

namespace tq {
namespace cuda {

inline int cluster_rank() { return emulate::here.rank; }
inline void cluster_meet() { emulate::cluster_barrier(); }
inline void cluster_meet_shared() { emulate::cluster_barrier(); }
inline void cluster_part() { emulate::cluster_barrier(); }
inline float4 load_of_rank(const float4* own, int rank) {
  return *reinterpret_cast<const float4*>(
      emulate::shared_of_rank(reinterpret_cast<const uint8_t*>(own), rank));
}
#define TQ_CLUSTER(n)  // is said before a launch
inline void expect_cluster(int ctas) { emulate::expect_cluster(ctas); }

}  // namespace cuda
}  // namespace tq
