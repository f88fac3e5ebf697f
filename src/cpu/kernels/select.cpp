// SPDX-License-Identifier: Apache-2.0
// Which tables exist, which run here, which one is taken. The choice is one table for a whole backend, made
// at create.
#include "cpu/kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#include "cpu/kernels/scalar.h"
#include "cpu/kernels/vbmi.h"
#include "hwy/detect_targets.h"
#include "status.h"

namespace tq {
namespace cpu {

// The tables of simd.cpp, one namespace per Highway target.
#if HWY_TARGETS & HWY_SSE4
namespace N_SSE4 {
extern const Kernels kKernels;
}
#endif
#if HWY_TARGETS & HWY_AVX2
namespace N_AVX2 {
extern const Kernels kKernels;
}
#endif
#if HWY_TARGETS & HWY_AVX3
namespace N_AVX3 {
extern const Kernels kKernels;
}
#endif
#if HWY_TARGETS & HWY_NEON
namespace N_NEON {
extern const Kernels kKernels;
}
#endif

#if HWY_ARCH_X86
namespace {
// Not a name that every compiler's __builtin_cpu_supports knows. Asked once: in a virtual machine the
// instruction leaves it, which takes tens of microseconds.
bool has_f16c() {
  static const bool has = [] {
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  }();
  return has;
}
}  // namespace
#endif

int supported_kernels(const Kernels** tables) {
  int count = 0;
  tables[count++] = &kScalarKernels;
#if HWY_ARCH_X86
  // What the compiler may use inside each target's namespace (hwy/ops/set_macros-inl.h). The checks include
  // the operating system's support.
  __builtin_cpu_init();
  const bool sse4 =
      __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("aes");
  const bool avx2 = sse4 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx3 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  [[maybe_unused]] const bool avx3_dl =
      avx3 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
#endif
#if HWY_TARGETS & HWY_SSE4
  if (sse4) tables[count++] = &N_SSE4::kKernels;
#endif
#if HWY_TARGETS & HWY_AVX2
  if (avx2) tables[count++] = &N_AVX2::kKernels;
#endif
#if HWY_TARGETS & HWY_AVX3
  if (avx3) tables[count++] = &N_AVX3::kKernels;
  // The same table with the integer kernels replaced. Filled once; C++ makes that safe among threads.
  static const Kernels vbmi_kernels = with_vbmi(N_AVX3::kKernels);
  if (avx3_dl) tables[count++] = &vbmi_kernels;
#endif
#if HWY_TARGETS & HWY_NEON
  tables[count++] = &N_NEON::kKernels;  // baseline of 64-bit Arm
#endif
  return count;
}

const Kernels& select_kernels(const char* name) {
  const Kernels* tables[kMaxIsas];
  const int count = supported_kernels(tables);
  if (!name) name = getenv("TQKV_CPU_ISA");
  if (!name || !*name) return *tables[count - 1];
  char choices[128] = "";
  for (int i = 0; i < count; i++) {
    if (strcmp(tables[i]->name, name) == 0) return *tables[i];
    const size_t used = strlen(choices);
    snprintf(choices + used, sizeof choices - used, "%s%s", i ? " " : "", tables[i]->name);
  }
  throw Error(
      Status::kNotSupported,
      "TQKV_CPU_ISA: \"%s\" is not an instruction set that this build and machine have; choose from: %s",
      name, choices);
}

}  // namespace cpu
}  // namespace tq
