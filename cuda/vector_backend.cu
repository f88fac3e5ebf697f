// SPDX-License-Identifier: Apache-2.0
// Vectors on their own on a CUDA device: tables are made on the host once and copied; a call becomes launches
// on its stream, one a part. Products and searches work in memory that all calls share, one after the other:
// an event tells when the last is through, for a call on another stream.
#include <algorithm>
#include <mutex>

#include "cuda/arena.h"
#include "cuda/backend.h"
#include "cuda/dispatch.h"
#include "cuda/vectors/launch.h"
#include "host_block.h"
#include "vector_tables.h"

namespace tq {
namespace cuda {
namespace {

using vectors::BestPlaces;
using vectors::GroupParams;
using vectors::kMaxOperands;
using vectors::kSketchOperand;
using vectors::LaunchPlace;
using vectors::NoticedWords;
using vectors::PartParams;
using vectors::QueryPlanes;

constexpr int64_t kPassRows = 256;  // queries whose operands are held at once
// Scores of a pass of a search, and results that its queries may ask for.
constexpr int64_t kPassScores = int64_t{1} << 22, kPassResults = int64_t{1} << 20;
constexpr int64_t kFirstRecords = 32768;  // of a search's first pass
// Where only the best of each block of records is kept: those of a pass, records for each place that the
// queries' lists have, and how many times as many records there are at least.
constexpr int64_t kPassBlocks = int64_t{1} << 22, kPassPlaces = int64_t{1} << 22, kLeastShare = 4;

class CudaVectors final : public VectorBackend {
 public:
  CudaVectors(const VectorGeometry& geometry, const HostOps& ops, const HostOps& device_ops);
  ~CudaVectors() override;

  void encode(const void* x, int64_t count, uint8_t* codes, uint64_t* noticed, void* stream) override;
  void decode(const uint8_t* codes, int64_t count, void* x, void* stream) override;
  void inner_products(const void* queries, int64_t num_queries, const uint8_t* codes, int64_t count,
                      float* out, void* stream) override;
  void search(const SearchRequest& request, void* stream) override;
  void rotate(const void* x, int64_t count, float* y, void* stream) override;
  void unrotate(const float* y, int64_t count, void* x, void* stream) override;
  void sketch_sums(const void* x, int64_t count, double* rv, double* vv) override;
  int64_t unit_coordinates(const void* x, int64_t count, float* values) override;

 private:
  void fill_parts(const VectorTables& tables, Carver carver, uint8_t* host, uint8_t* device);
  LaunchPlace place(void* stream) const { return LaunchPlace{num_units_, most_shared_, as_stream(stream)}; }
  QueryPlanes planes(int64_t rows, Carver* carver) const;
  int64_t planes_bytes(int64_t rows) const;
  // The shared memory, of at least so many bytes, once the call before is through with it.
  uint8_t* take_work(int64_t bytes, void* stream);
  void give_work(void* stream) { work_done_.record(as_stream(stream)); }
  void prepare(const QueryPlanes& planes, const void* queries, int64_t first, int64_t rows, void* stream);
  void multiply(const QueryPlanes& planes, const vectors::RecordRange& range,
                const vectors::ProductRows& target, void* stream);

  VectorGeometry g_;
  HostOps device_ops_;
  int num_units_, most_shared_;
  DeviceBlock tables_;
  PartParams parts_[VectorGeometry::kMaxParts];
  GroupParams groups_;
  int64_t operand_at_[kMaxOperands], slots_;

  std::mutex mutex_;  // of what follows
  MappedBlock noticed_;
  DeviceBlock work_;
  int64_t work_bytes_ = 0;
  Event work_done_;
  void* work_stream_ = nullptr;
};

// Measures without memory, or places: levels and boundaries of each part, channels, then the rotations.
void CudaVectors::fill_parts(const VectorTables& tables, Carver carver, uint8_t* host, uint8_t* device) {
  const auto take = [&](const void* source, int64_t bytes) -> uint8_t* {
    const int64_t at = carver.used();
    carver.take<uint8_t>(bytes);
    if (host && source) memcpy(host + at, source, static_cast<size_t>(bytes));
    return device + at;
  };
  const uint8_t* const rotations = take(tables.memory(), tables.bytes());
  const auto moved = [&](const auto* pointer) {
    using Pointer = decltype(pointer);
    return pointer ? reinterpret_cast<Pointer>(rotations +
                                               (reinterpret_cast<const uint8_t*>(pointer) - tables.memory()))
                   : nullptr;
  };
  constexpr int64_t kLevelBytes = format::kMaxLevels * static_cast<int64_t>(sizeof(float));
  for (int i = 0; i < g_.num_parts && !g_.grouped(); i++) {
    PartParams& p = parts_[i];
    p = PartParams{};
    p.vector_dim = g_.dim;
    p.io_dtype = g_.io_dtype;
    p.part = g_.parts[i];
    p.rule = g_.rule;
    p.search = g_.search;
    p.record_bytes = g_.record_bytes;
    p.rotation = {moved(tables.coder[i].signs), moved(tables.coder[i].dense)};
    p.level = reinterpret_cast<const float*>(take(tables.level[i], kLevelBytes));
    if (g_.has_levels) p.boundary = reinterpret_cast<const float*>(take(g_.levels.boundary, kLevelBytes));
    p.level_unit = g_.levels.unit;
    if (p.part.channels)
      p.part.channels = reinterpret_cast<const int32_t*>(
          take(p.part.channels, p.part.dim * static_cast<int64_t>(sizeof(int32_t))));
    p.has_sketch = g_.has_sketch;
    p.sketch[0] = {moved(tables.sketch.first.signs), moved(tables.sketch.first.dense)};
    p.sketch[1] = {moved(tables.sketch.second.signs), nullptr};
    p.sketch_scale = tables.sketch_scale;
  }
}

CudaVectors::CudaVectors(const VectorGeometry& geometry, const HostOps& ops, const HostOps& device_ops)
    : g_(geometry), device_ops_(device_ops), parts_{}, groups_{}, operand_at_{}, slots_(0) {
  const DeviceGuard guard(g_.device_id);
  num_units_ = num_multiprocessors(g_.device_id);
  most_shared_ = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, g_.device_id);
  const VectorTables tables(g_, ops);
  // Each table begins at a multiple of a Carver's alignment.
  const int64_t bytes =
      tables.bytes() +
      VectorGeometry::kMaxParts * (2 * format::kMaxLevels * static_cast<int64_t>(sizeof(float)) +
                                   g_.dim * static_cast<int64_t>(sizeof(int32_t)) + 4 * Carver::kAlignment);
  tables_ = DeviceBlock(device_ops, g_.device_id, bytes, "tables");
  const HostBlock staging(ops, bytes, "tables");
  memset(staging.get(), 0, static_cast<size_t>(bytes));
  fill_parts(tables, Carver(), static_cast<uint8_t*>(staging.get()), tables_.data());
  check_cuda(runtime().memcpy_sync(tables_.data(), staging.get(), static_cast<size_t>(bytes),
                                   cudaMemcpyHostToDevice),
             "cudaMemcpy");
  check_cuda(runtime().device_synchronize(), "cudaDeviceSynchronize");
  if (g_.grouped()) {
    groups_ =
        GroupParams{g_.dim,          g_.parts[0].bits,     g_.group,           g_.num_groups(), g_.io_dtype,
                    g_.record_bytes, g_.parts[0].scale_at, g_.parts[0].norm_at};
    slots_ = vectors::operand_slots(g_.dim);
  }
  for (int i = 0; i < g_.num_parts && !g_.grouped(); i++) {
    operand_at_[i] = slots_;
    slots_ += vectors::operand_slots(g_.parts[i].stored);
  }
  operand_at_[kSketchOperand] = slots_;
  if (g_.has_sketch) slots_ += vectors::operand_slots(g_.parts[0].stored);
  noticed_ = MappedBlock(sizeof(NoticedWords));
  work_done_.create();
}

CudaVectors::~CudaVectors() {
  try {
    const DeviceGuard guard(g_.device_id);
    check_cuda(runtime().device_synchronize(), "cudaDeviceSynchronize");
  } catch (const Error&) {  // a broken context or a driver on its way out: nothing runs any more
  }
}

void CudaVectors::encode(const void* x, int64_t count, uint8_t* codes, uint64_t* noticed, void* stream) {
  const DeviceGuard guard(g_.device_id);
  std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
  NoticedWords* words = nullptr;
  volatile NoticedWords* const seen = reinterpret_cast<volatile NoticedWords*>(noticed_.host());
  if (noticed) {
    require_no_capture(as_stream(stream), "tq_quantizer_encode with noticed");
    lock.lock();
    seen->nonfinite = seen->saturated = 0;
    words = reinterpret_cast<NoticedWords*>(noticed_.device());
  }
  if (g_.grouped()) vectors::launch_encode(groups_, x, count, codes, words, place(stream));
  for (int i = 0; i < g_.num_parts && !g_.grouped(); i++)
    vectors::launch_encode(parts_[i], x, count, codes, words, place(stream));
  if (!noticed) return;
  check_cuda(runtime().stream_synchronize(as_stream(stream)), "cudaStreamSynchronize");
  *noticed = (seen->nonfinite ? kNoticedNonfinite : 0) | (seen->saturated ? kNoticedSaturated : 0);
}

void CudaVectors::decode(const uint8_t* codes, int64_t count, void* x, void* stream) {
  const DeviceGuard guard(g_.device_id);
  if (g_.grouped()) vectors::launch_decode(groups_, codes, count, x, place(stream));
  for (int i = 0; i < g_.num_parts && !g_.grouped(); i++)
    vectors::launch_decode(parts_[i], codes, count, x, place(stream));
}

void CudaVectors::rotate(const void* x, int64_t count, float* y, void* stream) {
  const DeviceGuard guard(g_.device_id);
  for (int i = 0, offset = 0; i < g_.num_parts; offset += g_.parts[i++].stored)
    vectors::launch_rotate(parts_[i], x, count, y, g_.rotated_dim(), offset, place(stream));
}

void CudaVectors::unrotate(const float* y, int64_t count, void* x, void* stream) {
  const DeviceGuard guard(g_.device_id);
  for (int i = 0, offset = 0; i < g_.num_parts; offset += g_.parts[i++].stored)
    vectors::launch_unrotate(parts_[i], y, count, x, g_.rotated_dim(), offset, place(stream));
}

void CudaVectors::sketch_sums(const void*, int64_t, double*, double*) {
  throw Error(Status::kNotSupported,
              "quantizer: calibration is done on the CPU; what a CPU quantizer of the same configuration "
              "finds serves this one");
}
int64_t CudaVectors::unit_coordinates(const void*, int64_t, float*) {
  sketch_sums(nullptr, 0, nullptr, nullptr);
  return 0;
}

// ---- products ----

QueryPlanes CudaVectors::planes(int64_t rows, Carver* carver) const {
  QueryPlanes p = {};
  p.slots = slots_;
  p.high = carver->take<int8_t>(g_.grouped() ? 0 : rows * slots_);
  p.low = carver->take<uint8_t>(g_.grouped() ? 0 : rows * slots_);
  p.q = carver->take<int16_t>(g_.grouped() ? rows * slots_ : 0);
  p.rotated = carver->take<float>(g_.has_levels ? rows * g_.parts[0].stored : 0);
  p.sums = carver->take<int32_t>(rows * kMaxOperands);
  p.units = carver->take<double>(rows * kMaxOperands);
  p.finite = carver->take<int32_t>(rows);
  return p;
}

int64_t CudaVectors::planes_bytes(int64_t rows) const {
  Carver measure;
  planes(rows, &measure);
  return measure.used();
}

uint8_t* CudaVectors::take_work(int64_t bytes, void* stream) {
  if (stream != work_stream_ || bytes > work_bytes_) work_done_.wait();
  work_stream_ = stream;
  if (bytes > work_bytes_) {
    work_ = DeviceBlock();
    work_bytes_ = 0;
    work_ = DeviceBlock(device_ops_, g_.device_id, bytes, "search");
    work_bytes_ = bytes;
  }
  return work_.data();
}

void CudaVectors::prepare(const QueryPlanes& planes, const void* queries, int64_t first, int64_t rows,
                          void* stream) {
  if (g_.grouped()) return vectors::launch_queries(groups_, planes, queries, first, rows, place(stream));
  // Zeros behind each part's own, and of queries that are not finite.
  const auto clear = [&](void* plane) {
    check_cuda(runtime().memset_async(plane, 0, static_cast<size_t>(rows * slots_), as_stream(stream)),
               "cudaMemsetAsync");
  };
  clear(planes.high);
  clear(planes.low);
  for (int i = 0; i < g_.num_parts; i++)
    vectors::launch_queries(parts_[i], planes, queries, first, rows, i, operand_at_[i], place(stream));
}

void CudaVectors::multiply(const QueryPlanes& planes, const vectors::RecordRange& range,
                           const vectors::ProductRows& target, void* stream) {
  if (g_.grouped()) return vectors::launch_products(groups_, planes, range, target, place(stream));
  vectors::launch_products(parts_, g_.num_parts, operand_at_, planes, range, target, place(stream));
}

void CudaVectors::inner_products(const void* queries, int64_t num_queries, const uint8_t* codes,
                                 int64_t count, float* out, void* stream) {
  if (num_queries == 0 || count == 0) return;
  const DeviceGuard guard(g_.device_id);
  require_no_capture(as_stream(stream), "tq_quantizer_inner_products");
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t pass_rows = std::min(num_queries, kPassRows);
  Carver carver(take_work(planes_bytes(pass_rows), stream));
  const QueryPlanes operands = planes(pass_rows, &carver);
  const vectors::RecordRange range = {codes, codes + count * g_.record_bytes, count};
  for (int64_t first = 0; first < num_queries; first += pass_rows) {
    const int64_t rows = std::min(pass_rows, num_queries - first);
    prepare(operands, queries, first, rows, stream);
    multiply(operands, range, {out + first * count, rows, count}, stream);
  }
  give_work(stream);
}

void CudaVectors::search(const SearchRequest& s, void* stream) {
  if (s.num_queries == 0) return;
  const DeviceGuard guard(g_.device_id);
  require_no_capture(as_stream(stream), "tq_quantizer_search");
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t listed = vectors::block_list_stride(s.k);
  const bool by_blocks = !g_.grouped() &&
                         (vectors::has_tiles(parts_, g_.num_parts, place(stream)) ||
                          vectors::has_few(parts_, g_.num_parts, place(stream))) &&
                         listed <= std::min(s.count / kLeastShare, kPassPlaces);
  const int64_t places_of_row = by_blocks ? kPassPlaces / listed : kPassResults / s.k;
  const int64_t pass_rows = std::min({s.num_queries, kPassRows, std::max<int64_t>(places_of_row, 1)});
  const int64_t records = std::clamp<int64_t>(
      s.count, 1, by_blocks ? kPassBlocks / pass_rows * vectors::kBlockRecords : kPassScores / pass_rows);
  QueryPlanes operands;
  float* scores;
  void* blocks;
  BestPlaces best[2];
  const auto places = [&](Carver carver) {
    operands = planes(pass_rows, &carver);
    scores = carver.take<float>(by_blocks ? 0 : pass_rows * records);
    blocks =
        carver.take<int64_t>(by_blocks ? (vectors::best_blocks_bytes(pass_rows, records, s.k) + 7) / 8 : 0);
    for (BestPlaces& list : best) {
      list.stride =
          by_blocks ? std::max(listed, vectors::best_stride(s.k, 1)) : vectors::best_stride(s.k, records);
      list.scores = carver.take<float>(pass_rows * list.stride);
      list.ids = carver.take<int64_t>(pass_rows * list.stride);
      list.least = carver.take<uint32_t>(pass_rows);
    }
    return carver.used();
  };
  places(Carver(take_work(places(Carver()), stream)));
  for (int64_t first_row = 0; first_row < s.num_queries; first_row += pass_rows) {
    const int64_t rows = std::min(pass_rows, s.num_queries - first_row);
    prepare(operands, s.queries, first_row, rows, stream);
    vectors::launch_clear(best[0], rows, s.k, place(stream));
    // The first scores give a floor that few of the others pass.
    int64_t wanted = by_blocks ? records : std::min(records, kFirstRecords);
    for (int64_t first = 0, own = 0; first < s.count; first += own, wanted = records) {
      own = std::min(wanted, s.count - first);
      const vectors::RecordRange range = {s.codes + first * g_.record_bytes,
                                          s.codes + s.count * g_.record_bytes, own};
      const float* const bias = s.bias ? s.bias + first : nullptr;
      if (by_blocks) {
        vectors::launch_best_blocks(parts_, g_.num_parts, operand_at_, operands, range, bias, first, rows,
                                    s.k, blocks, best[0], best[1], place(stream));
      } else {
        const vectors::ProductRows target = {scores, rows, range.count};
        multiply(operands, range, target, stream);
        vectors::launch_select(target, bias, operands.finite, first, range.count, s.k, best[0], best[1],
                               place(stream));
      }
      std::swap(best[0], best[1]);
    }
    vectors::launch_sort(best[0], rows, s.k, s.scores + first_row * s.k, s.ids + first_row * s.k,
                         place(stream));
  }
  give_work(stream);
}

}  // namespace

std::unique_ptr<VectorBackend> create_cuda_vectors(const VectorGeometry& geometry, const HostOps& ops,
                                                   const HostOps& device_ops) {
  const int capability = 10 * device_attribute(cudaDevAttrComputeCapabilityMajor, geometry.device_id) +
                         device_attribute(cudaDevAttrComputeCapabilityMinor, geometry.device_id);
  TQ_CHECK(capability >= kMinComputeCapability, Status::kNotSupported,
           "device_id = %d: compute capability %d.%d, at least %d.%d is needed", geometry.device_id,
           capability / 10, capability % 10, kMinComputeCapability / 10, kMinComputeCapability % 10);
  return std::make_unique<CudaVectors>(geometry, ops, device_ops);
}

}  // namespace cuda
}  // namespace tq
