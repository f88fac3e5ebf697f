// SPDX-License-Identifier: Apache-2.0
// torch.ops.tqkv: append, attend, attend_out, merge and read as operators of torch, on its stable C++ ABI,
// for the CPU and CUDA. What they mean is said in __init__.py, which has them compiled and binds caches.
//
// `state` is a tensor without a content: append is declared to change it and the others take it, so a
// compiler keeps their order and drops no append. Work goes to torch's current stream.
#include <mutex>
#include <tuple>

#include "arguments.h"

namespace tq {
namespace torch_ops {
namespace {

// A bound batch with its cache's turn, as long as the call lasts.
class Call {
 public:
  explicit Call(int64_t number) : bound_(find(registry.batches, number)) {
    if (bound_.cache != nullptr) {
      if (bound_.cache->turn.is_mine())
        refuse_state("cache: busy: this thread is in the middle of another call on it");
      turn_ = std::unique_lock<Turn>(bound_.cache->turn);
      bound_.batch = find(registry.batches, number).batch;  // it may have been closed while this call waited
    }
    if (bound_.batch == nullptr)
      refuse_state("batch = " + std::to_string(number) + ": is closed, or was never bound (tqkv.torch.bind)");
    stream = current_stream(device());
  }
  const BoundCache& cache() const { return *bound_.cache; }
  Device device() const { return {cache().device_type, cache().device_id}; }
  tq_batch* batch() const { return bound_.batch; }
  // Rows of the plan; zeros and false if it is not in force.
  void ask_rows() {
    int32_t in_force = 0;
    check(library.batch_rows(batch(), &new_tokens, &query_tokens, &in_force));
    planned = in_force != 0;
  }
  Rows rows(int64_t layer, int64_t tokens, const char* meaning) const {
    return {cache(), shape_of(cache(), layer), tokens, planned, meaning};
  }

  int64_t new_tokens = 0, query_tokens = 0;
  bool planned = false;
  void* stream = nullptr;

 private:
  BoundBatch bound_;
  std::unique_lock<Turn> turn_;  // goes first
};

void append(const Tensor&, int64_t batch, int64_t layer, const Tensor& k, const Tensor& v) {
  Call call(batch);
  call.ask_rows();
  const tq_tensor_layout layout = append_layout(call.rows(layer, call.new_tokens, "new tokens"), k, v);
  check(library.append(call.cache().cache, static_cast<int32_t>(layer), call.batch(), k.data_ptr(),
                       v.data_ptr(), &layout, call.stream));
}

// out is made where it is not given; lse where it is asked for and not given.
void attend_into(int64_t batch, int64_t layer, const Tensor& q, const Options& options, Optional& out,
                 Optional& lse, bool makes) {
  Call call(batch);
  call.ask_rows();
  const Rows rows = call.rows(layer, call.query_tokens, "query tokens");
  const tq_attend_params params = attend_params(rows, q, options, out, lse, makes);
  check(library.attend(call.cache().cache, static_cast<int32_t>(layer), call.batch(), q.data_ptr(),
                       address(out), sums(options, lse), &params, nullptr, 0, call.stream));
}

std::tuple<Tensor, Tensor> attend(const Tensor&, int64_t batch, int64_t layer, const Tensor& q,
                                  Dtype out_dtype, bool with_lse, TQ_OPTIONS) {
  Optional out, lse;
  attend_into(batch, layer, q, {out_dtype, with_lse, TQ_OPTIONS_GIVEN}, out, lse, true);
  return {*out, *lse};
}

void attend_out(const Tensor&, int64_t batch, int64_t layer, const Tensor& q, const Tensor& out,
                const Optional& lse, TQ_OPTIONS) {
  Optional into = out, sums = lse;
  attend_into(batch, layer, q, {std::nullopt, true, TQ_OPTIONS_GIVEN}, into, sums, false);
}

std::tuple<Tensor, Tensor> merge(const std::vector<Tensor>& outs, const std::vector<Tensor>& lses) {
  if (outs.size() != lses.size() || outs.empty())
    refuse("outs, lses: " + std::to_string(outs.size()) + " and " + std::to_string(lses.size()) +
           " parts; there must be as many of each, at least 1");
  const Device device = device_of(outs[0]);
  const ScalarType type = outs[0].scalar_type();
  const int32_t dtype = library_dtype(type, "outs[0]");
  const std::vector<int64_t> shape(outs[0].sizes().begin(), outs[0].sizes().end());
  if (shape.size() < 2) refuse("outs[0]: must have 2 dimensions or more, the last one is dim");
  const std::vector<int64_t> row_shape(shape.begin(), shape.end() - 1);
  std::vector<const void*> parts;
  std::vector<const float*> sums;
  for (size_t i = 0; i < outs.size(); i++) {
    const std::string at = "[" + std::to_string(i) + "]";
    parts.push_back(
        dense(outs[i], ("outs" + at).c_str(), shape, {nullptr, "the shape of outs[0]"}, device, type));
    sums.push_back(static_cast<const float*>(
        dense(lses[i], ("lses" + at).c_str(), row_shape, {"rows", ""}, device, ScalarType::Float)));
  }
  int64_t count = 1;
  for (const int64_t extent : row_shape) count *= extent;
  Tensor out = empty(shape, type, device), lse = empty(row_shape, ScalarType::Float, device);
  if (shape.back() < 0 || shape.back() > INT32_MAX) refuse("outs[0]: dim does not fit 32 bits");
  check(library.merge(static_cast<int32_t>(parts.size()), parts.data(), sums.data(), count,
                      static_cast<int32_t>(shape.back()), dtype, out.data_ptr(),
                      static_cast<float*>(lse.data_ptr()), device.type, device.id, current_stream(device)));
  return {out, lse};
}

std::tuple<Tensor, Tensor> read(const Tensor&, int64_t batch, int64_t layer, int64_t sequence, int64_t first,
                                int64_t count) {
  Call call(batch);
  const LayerShape shape = shape_of(call.cache(), layer);
  const auto read_into = [&](void* k, void* v) {
    check(library.read(call.cache().cache, static_cast<int32_t>(layer), sequence, first, count, k, v, nullptr,
                       call.stream));
  };
  read_into(nullptr, nullptr);  // layer and range are checked before memory is made for them
  const ScalarType type = scalar_type(call.cache().dtype);
  Tensor k = empty({count, shape.kv_heads, shape.head_dim}, type, call.device()),
         v = empty({count, shape.kv_heads, shape.value_dim}, type, call.device());
  read_into(k.data_ptr(), v.data_ptr());
  return {k, v};
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("append", TORCH_BOX(&append));
  m.impl("attend", TORCH_BOX(&attend));
  m.impl("attend_out", TORCH_BOX(&attend_out));
  m.impl("merge", TORCH_BOX(&merge));
  m.impl("read", TORCH_BOX(&read));
}

}  // namespace
}  // namespace torch_ops
}  // namespace tq

STABLE_TORCH_LIBRARY(tqkv, m) {
  m.def("append(Tensor(a!) state, int batch, int layer, Tensor k, Tensor v) -> ()");
  m.def(
      "attend(Tensor state, int batch, int layer, Tensor q, *, ScalarType? out_dtype=None, bool "
      "with_lse=True, " TQ_OPTIONS_SCHEMA ") -> (Tensor, Tensor)");
  m.def(
      "attend_out(Tensor state, int batch, int layer, Tensor q, Tensor(a!) out, Tensor(b!)? lse=None, "
      "*, " TQ_OPTIONS_SCHEMA ") -> ()");
  m.def("merge(Tensor[] outs, Tensor[] lses) -> (Tensor, Tensor)");
  m.def(
      "read(Tensor state, int batch, int layer, SymInt sequence, SymInt first, SymInt count) -> (Tensor, "
      "Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(tqkv, CPU, m) { tq::torch_ops::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(tqkv, CUDA, m) { tq::torch_ops::implement(m); }
