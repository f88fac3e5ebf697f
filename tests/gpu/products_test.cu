// SPDX-License-Identifier: Apache-2.0
// The products of cuda/ptx/wgmma.cuh against float64: every width, the first operand in shared memory along
// and down its matrix and in registers, each 16 of the depth, second matrices, rows from the middle of a
// matrix on. What lies beside the operands is NaN.
//
// Halves are whole numbers below 2^5, so that products and sums are exact and any wrong element shows.
#include <random>
#include <vector>

#include "cuda/ptx/wgmma.cuh"
#include "cuda/runtime.h"
#include "format/encode.h"
#include "gpu_test.h"

namespace {

using namespace gpu_test;
using namespace tq::cuda;

constexpr int kRows = 128;                  // of either matrix
constexpr int kBytes = kRows * kMatrixRow;  // of 64 halves a row
enum class First { kShared, kTurned, kRegisters };
struct Place {
  int depth;                  // in 16s, of the matrix pair: 0 .. 7
  int first_row, second_row;  // multiples of 8 (of 64 for the first)
};

// a, b: [2 matrices][kRows][64], not swizzled. out: [64][kColumns]; starts from the product in front.
template <int kColumns, First kFirst>
__global__ void __launch_bounds__(128, 1)
    multiply(const uint16_t* a, const uint16_t* b, float* out, int depth, int first_row, int second_row) {
  if constexpr (kWarpgroups) {
    uint8_t* smem = launch_shared_matrices();
    for (int at = threadIdx.x; at < 4 * kRows * 64; at += 128) {
      const int matrix = at / (kRows * 64), row = at / 64 % kRows, k = at % 64;
      const uint16_t* from = matrix < 2 ? a + matrix * kRows * 64 : b + (matrix - 2) * kRows * 64;
      *reinterpret_cast<uint16_t*>(smem + matrix * kBytes + swizzled(row, 2 * k)) = from[row * 64 + k];
    }
    publish_to_products();
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int offset = depth / 4 * kBytes + depth % 4 * 32;
    // Turned: the depth goes down the rows of matrix first_row / 64.
    const uint64_t first = kFirst == First::kTurned
                               ? matrix_descriptor(smem + first_row / 64 * kBytes + depth * 16 * kMatrixRow)
                               : matrix_descriptor(smem + first_row * kMatrixRow) + (offset >> 4),
                   second = matrix_descriptor(smem + 2 * kBytes + second_row * kMatrixRow) + (offset >> 4);
    float d[kColumns / 8][4];
    uint32_t registers[4];
    for (int i = 0; i < 4; i++) {
      const int row = first_row + 16 * warp + g + i % 2 * 8, k = depth % 4 * 16 + 2 * t + i / 2 * 8;
      const uint16_t* from = a + depth / 4 * kRows * 64 + row * 64 + k;
      registers[i] = from[0] | static_cast<uint32_t>(from[1]) << 16;
    }
    wgmma_begin();
    if constexpr (kFirst == First::kRegisters) {
      wgmma_registers<kColumns, false>(d, registers, second);
      wgmma_registers<kColumns, true>(d, registers, second);
    } else {
      wgmma_shared<kColumns, false, kFirst == First::kTurned>(d, first, second);
      wgmma_shared<kColumns, true, kFirst == First::kTurned>(d, first, second);
    }
    wgmma_commit();
    wgmma_wait<0>(d);
    for (int n = 0; n < kColumns / 8; n++)
      for (int i = 0; i < 4; i++)
        out[(16 * warp + g + i / 2 * 8) * kColumns + 8 * n + 2 * t + i % 2] = d[n][i];
  }
}

template <int kColumns, First kFirst>
void try_product(const Place& place, std::mt19937& random) {
  const int depth = place.depth, a_row = place.first_row, b_row = place.second_row;
  std::vector<uint16_t> a(2 * kRows * 64, 0x7FFF), b(2 * kRows * 64, 0x7FFF);
  std::vector<double> x(64 * 16), y(kColumns * 16);
  const auto fill = [&](std::vector<uint16_t>& to, std::vector<double>& numbers, int row, int rows,
                        bool turned) {
    for (int r = 0; r < rows; r++)
      for (int k = 0; k < 16; k++) {
        const int number = static_cast<int>(random() % 63) - 31;
        numbers[r * 16 + k] = number;
        const int at = turned ? (row / 64 * kRows + depth * 16 + k) * 64 + r
                              : (depth / 4 * kRows + row + r) * 64 + depth % 4 * 16 + k;
        to[at] = tq::format::f16_from_float(static_cast<float>(number));
      }
  };
  fill(a, x, a_row, 64, kFirst == First::kTurned);
  fill(b, y, b_row, kColumns, false);
  const Buffer<uint16_t> a_device(a), b_device(b);
  Buffer<float> out(64 * kColumns);
  const auto kernel = multiply<kColumns, kFirst>;
  GPU_MUST(runtime().func_set_attribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, 4 * kBytes));
  launch_in_order("multiply", kernel, dim3(1), dim3(128), 4 * kBytes, nullptr, a_device.get(), b_device.get(),
                  out.get(), depth, a_row, b_row);
  GPU_MUST(cudaDeviceSynchronize());
  const std::vector<float> got = out.host();
  int wrong = 0;
  for (int row = 0; row < 64; row++)
    for (int column = 0; column < kColumns; column++) {
      double sum = 0;
      for (int k = 0; k < 16; k++) sum += 2 * x[row * 16 + k] * y[column * 16 + k];
      wrong += !(got[row * kColumns + column] == sum);
    }
  const char* const where[] = {"shared memory", "shared memory, turned", "registers"};
  check(wrong == 0, "64 x %d, first operand in %s, depth %d, rows from %d and %d: %d of %d numbers are wrong",
        kColumns, where[static_cast<int>(kFirst)], 16 * depth, a_row, b_row, wrong, 64 * kColumns);
}

template <int kColumns>
void try_width(std::mt19937& random) {
  for (int depth = 0; depth < 8; depth++)
    for (int a_row : {0, 64})
      for (int b_row = 0; b_row + kColumns <= kRows; b_row += 32) {
        try_product<kColumns, First::kShared>({depth, a_row, b_row}, random);
        try_product<kColumns, First::kTurned>({depth, a_row, b_row}, random);
        try_product<kColumns, First::kRegisters>({depth, a_row, b_row}, random);
      }
}

}  // namespace

int main() {
  int major = 0, minor = 0;
  GPU_MUST(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  GPU_MUST(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  if (major != 9 || minor != 0) {
    skip("compute capability %d.%d has no products of warpgroups", major, minor);
    return gpu_test::finish("products_test");
  }
  std::mt19937 random(1);
  try_width<16>(random);
  try_width<32>(random);
  try_width<64>(random);
  try_width<96>(random);
  try_width<128>(random);
  return gpu_test::finish("products_test");
}
