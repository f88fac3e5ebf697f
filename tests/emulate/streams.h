// SPDX-License-Identifier: Apache-2.0
// What tests may ask of the emulated runtime: streams that run in any legal order, launches that fail, and
// whether it is at work itself.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include <functional>

namespace emulate {

// Streams (streams.cpp): work is done when it is given, or, while a Disorder lives, in any order that
// streams, events and the host's waiting allow.
class Disorder {
 public:
  explicit Disorder(uint64_t seed);
  ~Disorder();  // waits for all work
  Disorder(const Disorder&) = delete;
  Disorder& operator=(const Disorder&) = delete;
  static int64_t items();    // done so far, by all
  static int64_t choices();  // how often several streams could have gone on
};
bool in_disorder();
void give(cudaStream_t stream, const std::function<void()>& work);
void wait_for(cudaStream_t stream);
void wait_for_all();

// Asked before every launch of the library, if set: what it answers is thrown as the launch's failure.
extern cudaError_t (*before_launch)();

// Whether the emulation is at work, or a launch is on its way to it: their allocations are not the library's.
extern int busy;
extern bool starting;
struct Busy {
  Busy() { busy++; }
  ~Busy() { busy--; }
};

}  // namespace emulate
