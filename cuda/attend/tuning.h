// SPDX-License-Identifier: Apache-2.0
// Sizes that were measured, not derived: workers, buffers a worker and deposits of an attend CTA. They never
// change a bit of a result: jobs and their order do not depend on them. What failed stands in cuda/DESIGN.md.
#pragma once
#include <limits.h>

namespace tq::cuda::attend {

struct AttendTuning {
  int workers;
  int stages;    // buffers of a worker; a power of two
  int deposits;  // job states that may wait; a power of two
  // of a CTA that may be on their way when another starts, if steps are larger than kSmallStepBytes; 0 = any
  // number
  int copies;
  int stage_bytes;  // only for steps of up to so many bytes
  // the same where copies are not limited and no warps are kept for exact tokens, if that is more
  int unpaced_bytes = 0;
};

constexpr int kSmallStepBytes = 4608;

// Whether copies on their way are limited on a device: by the peak bytes a second of its memory for each
// multiprocessor, 25 GB on the H100. The H200 has 37 GB and loses by it: B8 n32768, 4 + 4 bits, 83 us with
// four copies (`bench.py`, commit a62dc05), 80 with six, eight, twelve or any number (`attend_bench --copies
// N`).
constexpr bool paced_memory(int clock_khz, int bus_bits, int multiprocessors) {
  return 250.0 * clock_khz * bus_bits / multiprocessors <= 30e9;
}

// The first that fits is taken. Small steps (2 bits, head_dim 64) are bound by the latency of their
// instructions and want 10 workers: 59.0 us against 62.0 with 8 at B8 n32768, 2 + 2 bits; larger ones are
// bound by memory, and more copies in flight only make it slower: 3 + 3 bits 81.4 us with 10 workers, 79.9
// with 8. Copies, 4 + 4 bits: any number 104.7 us, eight 104.1, four 102.9 at B8 n32768, 57.5 / 57.2 / 56.1
// at B1 n131072, 32.3 / 31.6 / 31.6 at B64 n1024; 3 + 3 bits 79.9 / 79.9 / 80.9, 45.1 / 44.7 / 44.8, 25.7 /
// 25.6 / 26.0; 8 + 8 bits 99.1 / 97.9 / 97.1 at B1 n131072 (`attend_bench --cases full --copies N`, H100).
//
// An H200's memory is faster, so that 3 bits are bound by instructions too: 59.6 us with 10 workers, 63.3
// with 8 at B8 n32768, 203 and 217 at B32 n32768, 22.4 and 22.3 at B64 n1024; one sequence of 131,072 tokens
// beside 63 of 512 53.5 and 51.0. At 4 bits there is no room for as many deposits: 74.4 and 76.2, 259 and
// 265, 27.0 and 26.2, 61.4 and 58.1, so 8 stay (`attend_bench --cases full`, `ragged`, `--workers 10 --stages
// 2`).
constexpr AttendTuning kAttendTunings[] = {{10, 2, 8, 0, kSmallStepBytes, 6656},
                                           {8, 2, 8, 8, 6656},
                                           {8, 2, 8, 4, INT_MAX},
                                           {6, 2, 8, 4, INT_MAX},
                                           {4, 2, 4, 4, INT_MAX},
                                           {4, 1, 4, 4, INT_MAX},
                                           {2, 1, 2, 2, INT_MAX},
                                           {1, 1, 1, 1, INT_MAX}};

// Of trellis codes, whose steps are bound by the instructions that expand them: as many workers as there are.
// 3 + 3 bits 93.1 us with 10 workers, 96.6 with 8 at B8 n32768, 4 + 4 bits 121.3 and 124.0 (`attend_bench
// --family trellis --workers N`, H200).
constexpr AttendTuning kTrellisTunings[] = {
    {10, 2, 8, 0, INT_MAX}, {8, 2, 8, 0, INT_MAX}, {6, 2, 8, 4, INT_MAX}, {4, 2, 4, 4, INT_MAX},
    {4, 1, 4, 4, INT_MAX},  {2, 1, 2, 2, INT_MAX}, {1, 1, 1, 1, INT_MAX}};

// Of codes of 5 and 6 bits, likewise: 5 + 5 bits 98.7 us with 10 workers, 107 with 8 at B8 n32768, 6 + 6 bits
// 144 and 150. Four buffers, 5 + 3 bits 78.1 us instead of 83.3, 5 + 4 bits 89.2 instead of 91.7, but 5 + 5
// bits 99.5 and 6 + 4 bits 115 instead of 110 (`attend_bench --bits 55 --workers N --stages N`, H200).
constexpr AttendTuning kWideTunings[] = {{10, 4, 8, 0, 4736},   {10, 2, 8, 0, INT_MAX}, {8, 2, 8, 0, INT_MAX},
                                         {6, 2, 8, 4, INT_MAX}, {4, 2, 4, 4, INT_MAX},  {4, 1, 4, 4, INT_MAX},
                                         {2, 1, 2, 2, INT_MAX}, {1, 1, 1, 1, INT_MAX}};

// Of the generic kernel, which has raw sides: its steps are large, and workers with two buffers count for
// more than places for deposits.
constexpr AttendTuning kGenericTunings[] = {
    {10, 2, 8, 8, 6656},   {8, 2, 8, 8, 6656},    {8, 2, 8, 4, INT_MAX}, {8, 2, 4, 4, INT_MAX},
    {6, 2, 4, 4, INT_MAX}, {5, 2, 4, 4, INT_MAX}, {4, 2, 4, 4, INT_MAX}, {4, 1, 4, 4, INT_MAX},
    {2, 1, 2, 2, INT_MAX}, {1, 1, 1, 1, INT_MAX}};

}  // namespace tq::cuda::attend
