// SPDX-License-Identifier: Apache-2.0
// torch.ops.tqkv.paged_append and paged_attend: append and attend on blocks that an engine owns.
//
// The blocks are a tensor that append is declared to change, so a compiler orders calls by that.
// What a step consists of (its arrays, its workspace with the plan, all at addresses that stay) goes by the
// number of a bound step: a compiler that copied a workspace would leave the plan behind.
#include <mutex>
#include <tuple>

#include "arguments.h"

namespace tq {
namespace torch_ops {
namespace {

// A planned step with a part in its codec's turn: steps run side by side, but not while the codec is closed.
class StepCall {
 public:
  explicit StepCall(int64_t number) : bound_(find(registry.steps, number)) {
    if (bound_.codec != nullptr) {
      if (bound_.codec->turn.is_mine())
        refuse_state("codec: busy: this thread is in the middle of another call on it");
      turn_ = std::shared_lock<Turn>(bound_.codec->turn);
      bound_ = find(registry.steps, number);  // it may have been closed while this call waited
    }
    const std::string name = "step = " + std::to_string(number);
    if (bound_.codec == nullptr) refuse_state(name + ": is closed, or was never bound (tqkv.torch.bind)");
    if (bound_.workspace == nullptr) refuse_state(name + ": no plan was made yet");
    stream = current_stream({codec().device_type, codec().device_id});
  }
  const BoundCache& codec() const { return *bound_.codec; }
  const tq_paged_step* step() const { return &bound_.step; }
  void* workspace() const { return bound_.workspace; }
  size_t workspace_bytes() const { return bound_.workspace_bytes; }
  Rows rows(int64_t layer) const {
    return {codec(), shape_of(codec(), layer), bound_.step.num_tokens, true, "num_tokens"};
  }

  void* stream = nullptr;

 private:
  BoundStep bound_;
  std::shared_lock<Turn> turn_;  // goes first
};

// blocks [num_blocks][num_kv_heads][bytes] uint8 of any strides but for contiguous bytes. How many tokens a
// block has follows from its bytes: they are those of whole tiles.
tq_pages pages_of(const StepCall& call, int64_t layer, const Tensor& blocks) {
  tq_page_layout tile = {};
  tile.struct_size = sizeof tile;
  check(library.page_layout(call.codec().codec, static_cast<int32_t>(layer), 32, 0, TQ_PAGES_BLOCKS_FIRST,
                            &tile));
  const int64_t heads = tile.block_bytes / tile.block_head_bytes;
  check_device(blocks, "blocks", {call.codec().device_type, call.codec().device_id});
  check_elements(blocks, "blocks", ScalarType::Byte);
  const auto sizes = blocks.sizes(), strides = blocks.strides();
  if (sizes.size() != 3 || sizes[1] != heads || sizes[2] % tile.block_head_bytes != 0 || sizes[2] == 0 ||
      sizes[2] > 128 * tile.block_head_bytes || strides[2] != 1)
    refuse("blocks: has shape " + listed(sizes) + " and strides " + listed(strides) +
           ", expected [num_blocks][" + std::to_string(heads) +
           "][bytes] of contiguous bytes, a multiple of " + std::to_string(tile.block_head_bytes));
  tq_pages pages = {};
  pages.struct_size = sizeof pages;
  pages.block_size = static_cast<int32_t>(sizes[2] / tile.block_head_bytes * 32);
  pages.base = blocks.data_ptr();
  pages.num_blocks = sizes[0], pages.block_stride = strides[0], pages.head_stride = strides[1];
  return pages;
}

void paged_append(const Tensor& blocks, int64_t step, int64_t layer, const Tensor& k, const Tensor& v) {
  StepCall call(step);
  const tq_tensor_layout layout = append_layout(call.rows(layer), k, v);
  const tq_pages pages = pages_of(call, layer, blocks);
  check(library.paged_append(call.codec().codec, static_cast<int32_t>(layer), &pages, call.step(),
                             k.data_ptr(), v.data_ptr(), &layout, call.workspace(), call.workspace_bytes(),
                             call.stream));
}

void paged_attend_into(const Tensor& blocks, int64_t step, int64_t layer, const Tensor& q,
                       const Options& options, Optional& out, Optional& lse, bool makes) {
  StepCall call(step);
  const tq_attend_params params = attend_params(call.rows(layer), q, options, out, lse, makes);
  const tq_pages pages = pages_of(call, layer, blocks);
  check(library.paged_attend(call.codec().codec, static_cast<int32_t>(layer), &pages, call.step(),
                             q.data_ptr(), address(out), sums(options, lse), &params, call.workspace(),
                             call.workspace_bytes(), call.stream));
}

std::tuple<Tensor, Tensor> paged_attend(const Tensor& blocks, int64_t step, int64_t layer, const Tensor& q,
                                        Dtype out_dtype, bool with_lse, TQ_OPTIONS) {
  Optional out, lse;
  paged_attend_into(blocks, step, layer, q, {out_dtype, with_lse, TQ_OPTIONS_GIVEN}, out, lse, true);
  return {*out, *lse};
}

void paged_attend_out(const Tensor& blocks, int64_t step, int64_t layer, const Tensor& q, const Tensor& out,
                      const Optional& lse, TQ_OPTIONS) {
  Optional into = out, sums = lse;
  paged_attend_into(blocks, step, layer, q, {std::nullopt, true, TQ_OPTIONS_GIVEN}, into, sums, false);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("paged_append", TORCH_BOX(&paged_append));
  m.impl("paged_attend", TORCH_BOX(&paged_attend));
  m.impl("paged_attend_out", TORCH_BOX(&paged_attend_out));
}

}  // namespace
}  // namespace torch_ops
}  // namespace tq

STABLE_TORCH_LIBRARY_FRAGMENT(tqkv, m) {
  m.def("paged_append(Tensor(a!) blocks, int step, int layer, Tensor k, Tensor v) -> ()");
  m.def(
      "paged_attend(Tensor blocks, int step, int layer, Tensor q, *, ScalarType? "
      "out_dtype=None, bool with_lse=True, " TQ_OPTIONS_SCHEMA ") -> (Tensor, Tensor)");
  m.def(
      "paged_attend_out(Tensor blocks, int step, int layer, Tensor q, Tensor(a!) out, Tensor(b!)? lse=None, "
      "*, " TQ_OPTIONS_SCHEMA ") -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(tqkv, CPU, m) { tq::torch_ops::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(tqkv, CUDA, m) { tq::torch_ops::implement(m); }
