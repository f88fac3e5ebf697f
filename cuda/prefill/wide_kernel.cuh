// SPDX-License-Identifier: Apache-2.0
// Attention of many query rows over coded history on the warpgroup products of sm_90a, the history expanded
// once for all row blocks of a kv head (DESIGN.md section 7, "The other way"). One kernel does both: its
// CTAs, one a multiprocessor, draw items (wide_schedule.cuh), steps to be expanded and row blocks to be
// attended to. A warp draws them and copies images to shared memory by plain bulk copies; two warpgroups
// have 64 rows each.
//
// What orders what:
//   images        written by ordinary stores, read by bulk copies, by other CTAs: order_with_copies in every
//                 thread that stored, its warp's release of the counter, the copying thread's acquire,
//                 order_with_copies there, then the copies
//   their reuse   by a later pass: all row blocks of the pass have released `attended` after their last copy
//                 has arrived, which they have waited for; the expanding warps' stores come behind the
//                 acquire of the thread that posts the item
//   buffers       in shared memory: a copy starts when all eight warps have arrived at `empty`, behind the
//                 products that read it (wgmma_wait) and behind the lanes' loads of factors (__syncwarp);
//                 products and lanes read behind `full`, which the copy's bytes complete
//   queries       written by the kernel in front, as images; otherwise like the above
//   sums aside    places of the thread's own, never written by copies
//   states        stored by the thread that will load the same places for the next slice, perhaps in another
//                 CTA: barrier of the rows' warps, release of `done`, acquire by the copying thread,
//                 `posted`, loads past the first-level cache. Their reuse, two changes of heads or rows on,
//                 is at least two passes later: like that of the images
#pragma once
#include "cuda/prefill/wide_expand.cuh"
#include "cuda/prefill/wide_query.cuh"
#include "cuda/prefill/wide_rows.cuh"

namespace tq::cuda::prefill {

// One lane: draws items, tells the others, copies what they need.
template <int kStored, class Tuning>
struct WideCopies {
  using Shape = WideShape<kStored>;
  const WideParams& p;
  uint8_t* smem;
  int posts = 0, steps = 0, blocks = 0;

  __device__ __forceinline__ WideHead& head() const { return *reinterpret_cast<WideHead*>(smem); }

  __device__ __forceinline__ void wait_finished(int post) const {
    if (post >= 0) barrier_wait(head().finished + post % 2, post / 2 & 1);
  }
  __device__ __forceinline__ void post(const WideItem& item) {
    wait_finished(posts - 2);  // of its place
    head().items[posts % 2] = item;
    barrier_arrive(head().posted + posts % 2);
    posts++;
  }
  __device__ __forceinline__ void copy_queries(const WideItem& item) {
    barrier_wait(&head().queries_empty, (blocks & 1) ^ 1);
    barrier_expect(&head().queries_full, Shape::kQueryBytes);
    bulk_copy_shared(smem + p.cut.query_at, wide_queries<kStored>(p, item.block), Shape::kQueryBytes,
                     &head().queries_full);
    blocks++;
  }
  __device__ __forceinline__ void copy_step(int image) {
    const StepBuffer<2> at(steps++);
    const uint8_t* from = wide_image<kStored>(p, image);
    uint64_t *keys = head().keys_full + at.index, *values = head().values_full + at.index;
    barrier_wait(head().keys_empty + at.index, at.parity ^ 1);
    barrier_expect(keys, Shape::kKeyBytes + static_cast<int>(sizeof(WideFactors)));
    bulk_copy_shared(smem + p.cut.keys_at + at.index * Shape::kKeyBytes, from, Shape::kKeyBytes, keys);
    bulk_copy_shared(smem + p.cut.factors_at + at.index * static_cast<int>(sizeof(WideFactors)),
                     from + Shape::kFactorsAt, sizeof(WideFactors), keys);
    barrier_wait(head().values_empty + at.index, at.parity ^ 1);
    barrier_expect(values, Shape::kValueBytes);
    bulk_copy_shared(smem + p.cut.values_at + at.index * Shape::kValueBytes, from + Shape::kKeyBytes,
                     Shape::kValueBytes, values);
  }
  __device__ __forceinline__ void attend(const WideWalk<kStored, Tuning>& walk, const WideItem& item) {
    WideCounters* counters = wide_counters(p);
    if (!(item.flags & kWideFirst)) {
      if (item.begin >= item.end) {  // the block's history has ended in an earlier slice
        add_release(counters->attended + item.parity, 1);
        return;
      }
      wait_at_least(counters->done + item.state, item.stamp - 1);
    }
    wait_at_least(counters->expanded + item.parity,
                  walk.expanded[item.parity] + walk.expands * kPrefillWarps);
    order_with_copies();
    post(item);
    if (item.begin >= item.end) return;
    copy_queries(item);
#pragma unroll 1
    for (int step = item.begin; step < item.end; step++) copy_step(item.image + step - item.begin);
  }
  __device__ void run() {
    WideCounters* counters = wide_counters(p);
    using Walk = WideWalk<kStored, Tuning>;
    Walk& walk = *reinterpret_cast<Walk*>(smem + sizeof(WideHead));
    static_assert(sizeof(WideHead) + sizeof(walk) <= kWideHeadBytes, "its place");
    walk = Walk();
    while (true) {
      // Tickets are drawn when the last step of the present item is on its way, but one of a step to be
      // expanded, for which others wait, when the rows' warps are free.
      walk.go_to(p, load_acquire(&counters->ticket));
      if (walk.expands_at(load_acquire(&counters->ticket))) wait_finished(posts - 1);
      const int ticket = atomicAdd(&counters->ticket, 1);
      walk.go_to(p, ticket);
      const WideItem item = walk.item(p, ticket);
      if (item.kind == kWideAttend) {
        attend(walk, item);
        continue;
      }
      if (item.kind == kWideExpand) {
        // All passes but the one before: this half of the images was theirs, and so were these states.
        const int other = 1 - item.parity;
        wait_at_least(counters->attended + item.parity, walk.attended[item.parity]);
        wait_at_least(counters->attended + other, walk.attended[other] - walk.behind);
      }
      post(item);
      if (item.kind == kWideEnd) return;
    }
  }
};

template <int kStored, class Tuning, class Sides>
__global__ void __launch_bounds__(kWideThreads, 1) wide_kernel(const __grid_constant__ WideParams p) {
  if constexpr (kWarpgroups) {
    uint8_t* smem = launch_shared_matrices();
    WideHead& head = *reinterpret_cast<WideHead*>(smem);
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
      barrier_init(&head.queries_full, 1);
      barrier_init(&head.queries_empty, kPrefillWarps);
      for (int i = 0; i < 2; i++) {
        barrier_init(head.posted + i, 1);
        barrier_init(head.finished + i, kPrefillWarps);
        barrier_init(head.keys_full + i, 1);
        barrier_init(head.values_full + i, 1);
        barrier_init(head.keys_empty + i, kPrefillWarps);
        barrier_init(head.values_empty + i, kPrefillWarps);
      }
      barrier_init_fence();
    }
    __syncthreads();
    if (warp >= kPrefillWarps) {
      give_registers<kWideCopyRegisters>();
      if (warp == kPrefillWarps && lane == 0) WideCopies<kStored, Tuning>{p, smem}.run();
    } else {
      take_registers<kWideRowsRegisters>();
      WideRows<kStored, Tuning> rows = {
          p, smem, warp, lane,
          matrix_descriptor(smem + p.cut.query_at + warp / 4 * (kPrefillRows / 2 * kMatrixRow))};
      const WideExpander<kStored, Tuning, Sides> expander = {p, warp, lane};
      if (warp / 4 == 1) rows.end_turn();  // the first turn is the first warpgroup's
#pragma unroll 1
      for (int n = 0;; n++) {
        barrier_wait(head.posted + n % 2, n / 2 & 1);
        const WideItem& item = head.items[n % 2];  // there until the warp says that it has finished
        if (item.kind == kWideEnd) break;
        if (item.kind == kWideExpand)
          expander.expand(item);
        else
          rows.attend(item);
        rows.leave(head.finished + n % 2);
      }
      if (warp / 4 == 0) rows.take_turn();  // what the other has signalled last
    }
  }
}

}  // namespace tq::cuda::prefill
