// SPDX-License-Identifier: Apache-2.0
// Launches of the rotation of whole vectors.
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

template <bool kBack>
void launch_rows(const RowRotation& rotation, int dim, const LaunchPlace& place) {
  switch (dim / kRowNumbers) {
    case 1: launch_row_rotation<1, kBack>(rotation, place); break;
    case 2: launch_row_rotation<2, kBack>(rotation, place); break;
    case 4: launch_row_rotation<4, kBack>(rotation, place); break;
    case 8: launch_row_rotation<8, kBack>(rotation, place); break;
    case 16: launch_row_rotation<16, kBack>(rotation, place); break;
    default: launch_row_rotation<32, kBack>(rotation, place); break;
  }
}

}  // namespace

bool rotate_rows(const PartParams& part, const void* x, int64_t count, float* y, int64_t row, bool back,
                 const LaunchPlace& place) {
  const int dim = part.part.stored;
  const bool whole = part.part.dim == dim && part.vector_dim == dim && row == dim && !part.part.channels &&
                     format::odd_factor(dim) == 1 && dim >= kRowNumbers && dim <= 32 * kRowNumbers;
  const size_t wide = part.io_dtype == DataType::kF32 ? 16 : 8;
  if (!whole || any_dense(part) || reinterpret_cast<uintptr_t>(x) % wide != 0 ||
      reinterpret_cast<uintptr_t>(y) % 16 != 0)
    return false;
  const RowRotation rotation = {
      part.rotation.signs, format::hadamard_norm(format::log2_block(dim)), part.io_dtype, x, y, count};
  if (count > 0 && back)
    launch_rows<true>(rotation, dim, place);
  else if (count > 0)
    launch_rows<false>(rotation, dim, place);
  return true;
}

}  // namespace tq::cuda::vectors
