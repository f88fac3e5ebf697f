// SPDX-License-Identifier: Apache-2.0
// A defined floating-point environment for the duration of a scope: round to nearest, subnormals kept, no
// traps. A caller (or a thread of a runtime) may run with flush-to-zero on or another rounding mode; the
// stored bytes must not depend on it (FORMAT.md, "Conventions").
#pragma once
#include <stdint.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#else
#include <fenv.h>
#endif

namespace tq {
namespace cpu {

class FpEnvironment {
 public:
#if defined(__x86_64__) || defined(__i386__)
  FpEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(kDefaultControl); }
  ~FpEnvironment() { _mm_setcsr(saved_); }

 private:
  static constexpr uint32_t kDefaultControl = 0x1F80;  // all exceptions masked, nearest, FTZ and DAZ off
  uint32_t saved_;
#else
  FpEnvironment() {
    fegetenv(&saved_);
    fesetenv(FE_DFL_ENV);
  }
  ~FpEnvironment() { fesetenv(&saved_); }

 private:
  fenv_t saved_;
#endif
  FpEnvironment(const FpEnvironment&) = delete;
  FpEnvironment& operator=(const FpEnvironment&) = delete;
};

}  // namespace cpu
}  // namespace tq
