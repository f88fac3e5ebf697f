// SPDX-License-Identifier: Apache-2.0
// Fibers, collectives and barriers of an emulated CTA.
#include "emulate.h"

#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>

#include <stdexcept>
#include <vector>

#include "streams.h"

// Leaves one stack, whose top it keeps, for another. The C library's jumps, which scramble addresses and look
// for handlers, would cost a third of a kernel's time. Hosts of CUDA are of these two kinds.
extern "C" void tq_emulate_switch(void** leave, void* enter);
#if defined(__x86_64__)
constexpr int kSavedWords = 8, kReturnWord = 6;  // one more: a function begins 8 bytes off a multiple of 16
asm(R"(
  .text
  .type tq_emulate_switch, @function
tq_emulate_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx  # a return would go elsewhere than the processor expects
  .size tq_emulate_switch, . - tq_emulate_switch
)");
#elif defined(__aarch64__)
constexpr int kSavedWords = 20, kReturnWord = 11;
asm(R"(
  .text
  .type tq_emulate_switch, %function
tq_emulate_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size tq_emulate_switch, . - tq_emulate_switch
)");
#else
#error "the emulation knows how to change stacks on x86-64 and arm64"
#endif

namespace emulate {

Place here;
int multiprocessors = 5;

namespace {

constexpr size_t kStackBytes = (128 << 10) + 17 * 64;  // no power of two: the tops share no lines of a cache
constexpr int kNamedBarriers = 16;
constexpr int kRoundsOfAWarp = 4096;  // before others have a turn
constexpr int kCollectivesOfATurn = 1024;
constexpr int64_t kPatience = 200000;  // turns of all warps: no CTA of a test needs nearly as many

struct Fiber {
  void* at;  // its stack while it waits
  bool started, ended;
  int collectives, rank;
  uint3 thread;
};
// A stack outlives its fibers: it waits at `idle` for the next one.
struct Stack {
  void* idle = nullptr;  // none yet
};
// What the lanes of a warp gave, in this collective and the one before.
struct Meeting {
  uint64_t words[2][kWarp];
  alignas(16) uint8_t bytes[2][kWarp][kGatherBytes];
  int number[2], arrived[2];  // of the collective in each half, and lanes that are there
  int ended;                  // lanes
};
struct Named {
  int arrived = 0;
  uint32_t generation = 0;
};

unsigned first_block;  // of those that run
std::vector<Fiber> fibers;
std::vector<uint8_t> memory;  // of the stacks
std::vector<Stack> stacks;
std::vector<Meeting> meetings;
Named named[kMaxCluster][kNamedBarriers];
Named of_cluster;
int next_cluster = 1, cluster = 1, threads_of_cta;
void* scheduler;
const std::function<void()>* body;
int current, running;
bool leave_warp;
int turn_collectives;
uint32_t random_state;

// 0 without a seed: always the same order.
int random_below(int n) {
  if (random_state == 0) return 0;
  random_state = random_state * 1664525u + 1013904223u;
  return static_cast<int>((random_state >> 8) % static_cast<uint32_t>(n));
}

[[noreturn]] void enter() {
  for (;;) {
    (*body)();
    fibers[current].ended = true;
    meetings[here.warp].ended++;
    running--;
    tq_emulate_switch(&stacks[current].idle, scheduler);
  }
}

void yield() { tq_emulate_switch(&fibers[current].at, scheduler); }

void* new_stack(int index) {
  const uintptr_t end = reinterpret_cast<uintptr_t>(memory.data() + (index + 1) * kStackBytes);
  void** top = reinterpret_cast<void**>(end & ~uintptr_t{63});
  void** bottom = top - kSavedWords;
  std::fill(bottom, top, nullptr);
  bottom[kReturnWord] = reinterpret_cast<void*>(enter);
  return bottom;
}

void resume(int index) {
  Fiber& fiber = fibers[index];
  current = index;
  here.thread = fiber.thread;
  here.block.x = first_block + static_cast<unsigned>(fiber.rank);
  here.rank = fiber.rank;
  here.warp = index / kWarp;
  here.lane = index % kWarp;
  if (!fiber.started) {
    fiber.started = true;
    Stack& stack = stacks[index];
    if (!stack.idle) stack.idle = new_stack(index);
    fiber.at = stack.idle;
  }
  tq_emulate_switch(&scheduler, fiber.at);  // until it yields or ends
}

// A warp until it waits for others or ends: its lanes in turn, from a random one on, in either direction.
void run_warp(int warp) {
  const int first = warp * kWarp, lanes = std::min<int>(kWarp, static_cast<int>(fibers.size()) - first);
  if (meetings[warp].ended == lanes) return;
  bool alive = true;
  leave_warp = false;
  turn_collectives = 0;
  for (int round = 0; round < kRoundsOfAWarp && !leave_warp && alive; round++) {
    const int from = random_below(lanes), back = random_below(2);
    alive = false;
    for (int i = 0; i < lanes; i++) {
      int lane = from + (back ? lanes - i : i);
      if (lane >= lanes) lane -= lanes;
      if (fibers[first + lane].ended) continue;
      resume(first + lane);
      alive = true;
    }
  }
}

[[noreturn]] void report_no_end() {
  fprintf(stderr,
          "emulate: the CTA %u does not come to an end; warps and how many collectives their lanes 0 have "
          "passed:",
          here.block.x);
  for (size_t i = 0; i < fibers.size(); i += kWarp)
    fprintf(stderr, " %zu: %d%s", i / kWarp, fibers[i].collectives, fibers[i].ended ? " (ended)" : "");
  fprintf(stderr, "\n");
  abort();
}

void run_cta() {
  const int warps = static_cast<int>(meetings.size());
  for (int64_t turn = 0; running > 0; turn++) {
    if (turn == kPatience) report_no_end();
    const int from = random_below(warps);
    for (int i = 0; i < warps; i++)
      if (random_state == 0 || random_below(4) > 0) run_warp((from + i) % warps);  // some fall behind
  }
}

template <class Give>
int meet(Give give) {
  Fiber& fiber = fibers[current];
  Meeting& meeting = meetings[here.warp];
  const int own = ++fiber.collectives, half = own & 1;
  give(meeting, half);
  // Whoever is in this half's next collective has left its last one, and so have all.
  if (meeting.number[half] != own) meeting.number[half] = own, meeting.arrived[half] = 0;
  meeting.arrived[half]++;
  const int lanes =
      static_cast<int>(std::min<size_t>(kWarp, fibers.size() - static_cast<size_t>(here.warp) * kWarp));
  // Nobody that is in this collective ends before all are.
  for (int rounds = 0; meeting.arrived[half] + meeting.ended < lanes; rounds++) {
    if (rounds > 2) leave_warp = true;  // a lane waits for another warp
    yield();
  }
  if (++turn_collectives > kCollectivesOfATurn) leave_warp = true;
  return half;
}

alignas(1024) uint8_t shared_memory[kMaxCluster][(kSharedBytes + 1023) / 1024 * 1024];

}  // namespace

uint8_t* launch_shared() { return shared_memory[here.rank]; }
const uint8_t* shared_of_rank(const uint8_t* own, int rank) {
  return own - shared_memory[here.rank] + shared_memory[rank];
}
void expect_cluster(int ctas) { next_cluster = ctas; }
int take_cluster() {
  starting = true;  // until the work is enqueued
  const int ctas = next_cluster;
  next_cluster = 1;
  return ctas;
}

void poll() {
  leave_warp = true;
  yield();
}

const uint64_t* gather(uint64_t mine) {
  const int half = meet([&](Meeting& meeting, int at) { meeting.words[at][here.lane] = mine; });
  return meetings[here.warp].words[half];
}

const uint8_t* gather_bytes(const void* mine, size_t bytes) {
  const int half = meet([&](Meeting& meeting, int at) { memcpy(meeting.bytes[at][here.lane], mine, bytes); });
  return meetings[here.warp].bytes[half][0];
}

void meet_at(Named& bar, int threads, bool wait) {
  const uint32_t generation = bar.generation;
  if (++bar.arrived == threads) {
    bar.arrived = 0;
    bar.generation++;
    return;
  }
  while (wait && bar.generation == generation) poll();
}
void barrier(int id, int threads, bool wait) { meet_at(named[here.rank][id], threads, wait); }
void cluster_barrier() { meet_at(of_cluster, cluster * threads_of_cta, true); }

// What a kernel finds in shared memory: other words in every CTA and every launch. As floats they are of one
// order of magnitude, so that their products with a kernel's numbers pass the range of float now and then,
// but not always. A result that depends on them is not the same twice.
void fill_with_anything(size_t bytes) {
  static uint32_t state = 1;
  const auto next = [] { return (state = state * 1664525u + 1013904223u) >> 8; };
  const uint32_t exponent = next() % 2 ? 248 + next() % 7 : 96 + next() % 160;
  for (size_t at = 0; at + 4 <= bytes; at += 4) {
    const uint32_t random = next(), word = random << 31 | (exponent - (random >> 1 & 3)) << 23 | random >> 1;
    for (int rank = 0; rank < cluster; rank++) memcpy(shared_memory[rank] + at, &word, 4);
  }
}

void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread, int ctas) {
  const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
  if (shared > kSharedBytes || threads == 0 || threads > 1024)
    throw std::runtime_error("emulate: no CTA can have so much shared memory or threads");
  cluster = ctas;
  threads_of_cta = static_cast<int>(threads);
  const size_t together = threads * static_cast<size_t>(cluster);
  if (cluster > kMaxCluster || grid.x % static_cast<unsigned>(cluster) != 0 ||
      (cluster > 1 && threads % kWarp != 0))
    throw std::runtime_error("emulate: no such cluster");
  if (stacks.size() < together) {  // in other memory: made anew
    memory.resize(together * kStackBytes);
    stacks.assign(together, Stack());
  }
  const char* seed = getenv("TQ_EMULATE_SEED");
  random_state = seed ? static_cast<uint32_t>(atoi(seed)) : 0;
  body = &thread;
  here.block_dim = block;
  here.grid_dim = grid;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x += static_cast<unsigned>(cluster)) {
        here.block = {x, y, z};
        first_block = x;
        fill_with_anything(shared);
        fibers.resize(together);
        meetings.resize((together + kWarp - 1) / kWarp);
        for (Meeting& meeting : meetings) {
          meeting.ended = 0;
          for (int half : {0, 1}) meeting.number[half] = meeting.arrived[half] = 0;
        }
        for (auto& of_cta : named)
          for (Named& bar : of_cta) bar = Named();
        of_cluster = Named();
        for (unsigned at = 0; at < together; at++) {
          const unsigned i = at % static_cast<unsigned>(threads);
          Fiber& fiber = fibers[at];
          fiber.started = fiber.ended = false;
          fiber.collectives = 0;
          fiber.rank = static_cast<int>(at / threads);
          fiber.thread = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
        }
        running = static_cast<int>(together);
        run_cta();
      }
}

namespace {

template <class Operation>
float rounded(int mode, Operation operation) {
  fesetround(mode);
  const volatile float result = operation();
  fesetround(FE_TONEAREST);
  return result;
}

}  // namespace

}  // namespace emulate

int __syncthreads_and(int predicate) {
  static int result;
  __syncthreads();
  result = 1;
  __syncthreads();
  if (!predicate) result = 0;
  __syncthreads();
  return result;
}

// volatile: computed between the changes of the mode.
float __fadd_ru(float a, float b) {
  const volatile float x = a, y = b;
  return emulate::rounded(FE_UPWARD, [&] { return x + y; });
}
float __fmul_ru(float a, float b) {
  const volatile float x = a, y = b;
  return emulate::rounded(FE_UPWARD, [&] { return x * y; });
}
float __fmaf_rz(float a, float b, float c) {
  const volatile float x = a, y = b, z = c;
  return emulate::rounded(FE_TOWARDZERO, [&] { return fmaf(x, y, z); });
}
