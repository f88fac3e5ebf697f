// SPDX-License-Identifier: Apache-2.0
// Launches of the decoders of vectors on their own, and of the rotation.
#include "cuda/vectors/decode.cuh"
#include "cuda/vectors/launch_team.h"
#include "cuda/vectors/row_rotation.cuh"

namespace tq::cuda::vectors {
namespace {

template <int kSize, bool kBack>
void launch_row_rotation(const RowRotation& rotation, const LaunchPlace& place) {
  launch_in_order("row_rotation_kernel", row_rotation_kernel<kSize, kBack>,
                  grid_for(rotation.count * kSize, kRowThreads, place), dim3(kRowThreads), 0, place.stream,
                  rotation);
}

// Whole vectors of a power of two, at addresses for wide accesses. False: not these.
template <bool kBack>
bool rotate_rows(const PartParams& part, const void* x, int64_t count, float* y, int64_t row,
                 const LaunchPlace& place) {
  const int dim = part.part.stored;
  const bool whole = part.part.dim == dim && part.vector_dim == dim && row == dim && !part.part.channels &&
                     format::odd_factor(dim) == 1 && dim >= kRowNumbers && dim <= 32 * kRowNumbers;
  const size_t wide = part.io_dtype == DataType::kF32 ? 16 : 8;
  if (!whole || any_dense(part) || reinterpret_cast<uintptr_t>(x) % wide != 0 ||
      reinterpret_cast<uintptr_t>(y) % 16 != 0)
    return false;
  if (count == 0) return true;
  const RowRotation rotation = {
      part.rotation.signs, format::hadamard_norm(format::log2_block(dim)), part.io_dtype, x, y, count};
  switch (dim / kRowNumbers) {
    case 1: launch_row_rotation<1, kBack>(rotation, place); break;
    case 2: launch_row_rotation<2, kBack>(rotation, place); break;
    case 4: launch_row_rotation<4, kBack>(rotation, place); break;
    case 8: launch_row_rotation<8, kBack>(rotation, place); break;
    case 16: launch_row_rotation<16, kBack>(rotation, place); break;
    default: launch_row_rotation<32, kBack>(rotation, place); break;
  }
  return true;
}

}  // namespace

void launch_decode(const PartParams& part, const uint8_t* records, int64_t count, void* x,
                   const LaunchPlace& place) {
  with_kernel(part, [&](auto odd, auto dense) {
    constexpr int kOdd = decltype(odd)::value;
    constexpr bool kDense = decltype(dense)::value;
    launch_team<kOdd>("decode_kernel", decode_kernel<kOdd, kDense>, part.part.stored, false, kDense, count,
                      place, part, records, count, x);
  });
}

void launch_decode(const GroupParams& groups, const uint8_t* records, int64_t count, void* x,
                   const LaunchPlace& place) {
  constexpr int kThreads = 256;
  if (count == 0) return;
  launch_in_order("decode_groups_kernel", decode_groups_kernel, grid_for(count * groups.dim, kThreads, place),
                  dim3(kThreads), 0, place.stream, groups, records, count, x);
}

void launch_rotate(const PartParams& part, const void* x, int64_t count, float* y, int64_t row,
                   int64_t offset, const LaunchPlace& place) {
  if (rotate_rows<false>(part, x, count, y, row, place)) return;
  with_kernel(part, [&](auto odd, auto dense) {
    constexpr int kOdd = decltype(odd)::value;
    constexpr bool kDense = decltype(dense)::value;
    launch_team<kOdd>("rotate_kernel", rotate_kernel<kOdd, kDense>, part.part.stored, false, kDense, count,
                      place, part, x, count, y, RotatedPlace{row, offset});
  });
}

void launch_unrotate(const PartParams& part, const float* y, int64_t count, void* x, int64_t row,
                     int64_t offset, const LaunchPlace& place) {
  if (rotate_rows<true>(part, x, count, const_cast<float*>(y), row, place)) return;
  with_kernel(part, [&](auto odd, auto dense) {
    constexpr int kOdd = decltype(odd)::value;
    constexpr bool kDense = decltype(dense)::value;
    launch_team<kOdd>("unrotate_kernel", unrotate_kernel<kOdd, kDense>, part.part.stored, false, kDense,
                      count, place, part, y, count, x, RotatedPlace{row, offset});
  });
}

}  // namespace tq::cuda::vectors
