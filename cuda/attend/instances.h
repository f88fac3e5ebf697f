// SPDX-License-Identifier: Apache-2.0
// The compiled attend kernels. TQ_ATTEND_*: stored dimension, key bits, value bits, tiles of a step, warps of
// a CTA. TQ_GENERIC_*: key and value dimension rounded up to 32, for every width, raw included. A group is
// one launch file, so that they compile in parallel.
//
// 16 warps are 4 on each scheduler: up to 128 registers. 12 warps: up to 168. 8 warps: up to 255. None spills
// (tests/gpu/check_resources.py).
#pragma once

namespace tq {
namespace cuda {

struct AttendLaunch;

#define TQ_ATTEND_D128(X) X(128, 4, 4, 2, 16) X(128, 3, 3, 2, 16) X(128, 2, 2, 2, 16)
#define TQ_ATTEND_D128_MORE(X) \
  X(128, 8, 8, 1, 16) X(128, 4, 2, 2, 16) X(128, 3, 2, 2, 16) X(128, 4, 3, 2, 12) X(128, 8, 4, 1, 16)
#define TQ_ATTEND_D64(X) \
  X(64, 4, 4, 2, 16) X(64, 3, 3, 2, 16) X(64, 2, 2, 2, 16) X(64, 8, 8, 2, 16) X(64, 4, 2, 2, 16)
#define TQ_ATTEND_D96(X) X(96, 4, 4, 2, 16) X(96, 3, 3, 2, 16) X(96, 2, 2, 2, 16) X(96, 8, 8, 1, 16)
#define TQ_ATTEND_D192(X) X(192, 4, 4, 1, 16) X(192, 3, 3, 1, 16) X(192, 2, 2, 1, 16) X(192, 8, 8, 1, 16)
#define TQ_ATTEND_D256(X) \
  X(256, 4, 4, 1, 12) X(256, 3, 3, 1, 12) X(256, 2, 2, 1, 12) X(256, 8, 8, 1, 8) X(256, 4, 2, 1, 12)
#define TQ_ATTEND_LIST(X) \
  TQ_ATTEND_D128(X)       \
  TQ_ATTEND_D128_MORE(X) TQ_ATTEND_D64(X) TQ_ATTEND_D96(X) TQ_ATTEND_D192(X) TQ_ATTEND_D256(X)

#define TQ_GENERIC_SMALL(X) X(32, 32) X(64, 64) X(96, 96) X(128, 128) X(192, 128)
#define TQ_GENERIC_MID(X) X(160, 160) X(192, 192) X(224, 224) X(256, 256)
#define TQ_GENERIC_LARGE(X) X(512, 512) X(576, 512) X(576, 576)
#define TQ_GENERIC_LIST(X) TQ_GENERIC_SMALL(X) TQ_GENERIC_MID(X) TQ_GENERIC_LARGE(X)

#define TQ_ATTEND_DECLARE(dim, key_bits, value_bits, tiles, warps) \
  void launch_coded_##dim##_##key_bits##_##value_bits(const AttendLaunch& launch);
TQ_ATTEND_LIST(TQ_ATTEND_DECLARE)
#undef TQ_ATTEND_DECLARE
#define TQ_GENERIC_DECLARE(key, value) void launch_generic_##key##_##value(const AttendLaunch& launch);
TQ_GENERIC_LIST(TQ_GENERIC_DECLARE)
#undef TQ_GENERIC_DECLARE

// In a launch file: the definitions of one group.
#define TQ_ATTEND_DEFINE(dim, key_bits, value_bits, tiles, warps)                   \
  void launch_coded_##dim##_##key_bits##_##value_bits(const AttendLaunch& launch) { \
    launch_coded<dim, key_bits, value_bits, tiles, warps>(launch);                  \
  }
#define TQ_GENERIC_DEFINE(key, value) \
  void launch_generic_##key##_##value(const AttendLaunch& launch) { launch_generic<key, value>(launch); }

}  // namespace cuda
}  // namespace tq
