// SPDX-License-Identifier: Apache-2.0
// Inner products of queries with records, and the search for the largest; see vectors.h.
//
// A query is rotated once and rounded to 16 bits relative to its largest coordinate; a record's codes become
// 16-bit integers, twice their levels, once for all queries of a block. Their products are summed exactly,
// and what follows is a fixed sequence of double operations, so that results depend neither on the
// instruction set nor on threads. Custom levels are floats: products with them are summed in double, in
// order.
#include <math.h>
#include <string.h>

#include <algorithm>

#include "cpu/fp_environment.h"
#include "cpu/vectors.h"
#include "format/sketch.h"

namespace tq {
namespace cpu {
namespace {

constexpr int kRows = 32;           // queries that are served by one expansion of a record
constexpr int64_t kRecords = 64;    // of one task of inner_products, or between looks at a heap
constexpr int64_t kPassRows = 256;  // queries whose operands are held at once
constexpr int64_t kHeapBytes = 1 << 26;
constexpr float kOperandMax = 32767.0f;

struct Found {
  float score;
  int64_t id;
};
// Better first: a heap of them has the worst on top.
bool better(const Found& a, const Found& b) { return a.score != b.score ? a.score > b.score : a.id < b.id; }

// A power of two that brings queries of any size to where rotation and sanitising do nothing to them.
int range_shift(float largest) { return largest > 0x1p60f ? -70 : largest < 0x1p-60f ? 70 : 0; }

// q = rint(y * 32767 / largest) -> what one unit of q is worth.
double round_operand(const float* y, int count, int16_t* q) {
  float largest = 0;
  for (int i = 0; i < count; i++) largest = std::max(largest, fabsf(y[i]));
  if (largest == 0) return 0;
  const float inverse = kOperandMax / largest;
  for (int i = 0; i < count; i++)
    q[i] = static_cast<int16_t>(rintf(std::min(std::max(y[i] * inverse, -kOperandMax), kOperandMax)));
  return static_cast<double>(largest) / static_cast<double>(kOperandMax);
}

}  // namespace

// Queries of a pass: q [rows][slots], and for levels the rotated queries [rows][stored] as floats.
class CpuVectors::Operands {
 public:
  Operands(const CpuVectors& owner, int64_t rows)
      : slots(owner.operand_slots()),
        stored_(owner.g_.parts[0].stored),
        block_(owner.ops_, carve(owner, rows, Carver()), "queries") {
    carve(owner, rows, Carver(block_.get()));
  }

  const int64_t slots;
  QueryOperand* rows;
  int16_t* q(int64_t row) const { return q_ + row * slots; }
  float* rotated(int64_t row) const { return rotated_ + row * stored_; }

 private:
  int64_t carve(const CpuVectors& owner, int64_t count, Carver carver) {
    rows = carver.take<QueryOperand>(count);
    q_ = carver.take<int16_t>(count * slots);
    rotated_ = carver.take<float>(owner.g_.has_levels ? count * stored_ : 0);
    return carver.used();
  }

  const int64_t stored_;
  int16_t* q_;
  float* rotated_;
  HostBlock block_;
};

int64_t CpuVectors::operand_slots() const {
  int64_t slots = g_.has_sketch ? value_slots(g_.parts[0].stored) : 0;
  for (int i = 0; i < g_.num_parts; i++) slots += value_slots(g_.parts[i].stored);
  return slots;
}

void CpuVectors::prepare_query(const float* x, QueryOperand* operand, int16_t* q, float* rotated) const {
  *operand = QueryOperand{};
  memset(q, 0, static_cast<size_t>(operand_slots()) * sizeof *q);
  operand->finite = true;
  float largest = 0;
  for (int i = 0; i < g_.dim; i++) {
    operand->finite = operand->finite && isfinite(x[i]);
    largest = std::max(largest, fabsf(x[i]));
  }
  if (g_.has_levels) std::fill_n(rotated, g_.parts[0].stored, 0.0f);
  if (!operand->finite) return;
  const int shift = range_shift(largest);
  alignas(64) float own[format::kMaxVectorDim], y[format::kMaxVectorDim], scratch[format::kMaxVectorDim];
  if (g_.grouped()) {
    for (int i = 0; i < g_.dim; i++) own[i] = ldexpf(x[i], shift);
    operand->unit[0] = ldexp(round_operand(own, g_.dim, q), -shift);
    return;
  }
  int64_t at = 0;
  for (int index = 0; index < g_.num_parts; index++) {
    const VectorPart& part = g_.parts[index];
    gather(part, x, own);
    for (int i = 0; i < part.dim; i++) own[i] = ldexpf(own[i], shift);
    const format::RotatedInput in = kernels_.rotate_input(tables_.coder[index], own, y, scratch);
    if (in.zero) std::fill_n(y, part.stored, 0.0f);
    const double worth = ldexp(static_cast<double>(in.norm_rot), in.exponent - shift);
    operand->unit[index] = 0.5 * worth * round_operand(y, part.stored, q + at);
    at += value_slots(part.stored);
    if (g_.has_levels) {
      memcpy(rotated, y, part.stored * sizeof *y);
      operand->unit[index] = worth;
    }
    if (!g_.has_sketch) continue;
    format::apply_sketch(tables_.sketch, y, scratch, kernels_.rotate);
    operand->sketch_unit =
        0.5 * worth * static_cast<double>(tables_.sketch_scale) * round_operand(scratch, part.stored, q + at);
  }
}

void CpuVectors::score_record(const uint8_t* record, const Operands& operands, int64_t first, int rows,
                              float* scores, int64_t stride) const {
  if (g_.grouped()) return score_groups(record, operands, first, rows, scores, stride);
  uint8_t codes[format::kMaxVectorDim];
  alignas(64) int16_t values[format::kMaxVectorDim + 32];
  int64_t sums[kRows];
  double totals[kRows] = {};
  int64_t at = 0;
  const auto multiply = [&](int stored) {
    const int64_t slots = value_slots(stored);
    std::fill(values + stored, values + slots, static_cast<int16_t>(0));
    kernels_.dot_values(operands.q(first) + at, operands.slots, rows, values, static_cast<int>(slots), sums);
    at += slots;
  };
  for (int index = 0; index < g_.num_parts; index++) {
    const VectorPart& part = g_.parts[index];
    const double scale = static_cast<double>(scale_of(part, record));
    kernels_.unpack_codes(record + part.codes_at, part.bits, part.stored, codes);
    if (g_.has_levels) {
      for (int r = 0; r < rows; r++) {
        const float* q = operands.rotated(first + r);
        double sum = 0;
        for (int i = 0; i < part.stored; i++)
          sum += static_cast<double>(q[i]) * static_cast<double>(tables_.level[0][codes[i]]);
        totals[r] = operands.rows[first + r].unit[0] * scale * sum;
      }
      at += value_slots(part.stored);
      continue;
    }
    kernels_.double_levels(part.book, codes, part.stored, values);
    multiply(part.stored);
    for (int r = 0; r < rows; r++)
      totals[r] += operands.rows[first + r].unit[index] * scale * static_cast<double>(sums[r]);
  }
  if (g_.has_sketch) {
    const int stored = g_.parts[0].stored;
    const double norm = static_cast<double>(norm_of(record));
    kernels_.unpack_codes(record + g_.parts[0].signs_at, 1, stored, codes);
    kernels_.double_levels(tables_.sign_book, codes, stored, values);
    multiply(stored);
    for (int r = 0; r < rows; r++)
      totals[r] += operands.rows[first + r].sketch_unit * norm * static_cast<double>(sums[r]);
  }
  for (int r = 0; r < rows; r++) scores[r * stride] = static_cast<float>(totals[r]);
}

void CpuVectors::score_groups(const uint8_t* record, const Operands& operands, int64_t first, int rows,
                              float* scores, int64_t stride) const {
  const VectorPart& part = g_.parts[0];
  uint8_t codes[format::kMaxVectorDim];
  format::unpack_codes(record, part.bits, g_.dim, codes);
  double totals[kRows] = {};
  for (int group = 0; group < g_.num_groups(); group++) {
    uint16_t half[2];
    memcpy(&half[0], record + part.scale_at + 2 * group, 2);
    memcpy(&half[1], record + part.norm_at + 2 * group, 2);
    const double scale = static_cast<double>(format::float_from_f16(half[0])),
                 zero = static_cast<double>(format::float_from_f16(half[1]));
    const int begin = group * g_.group, end = std::min(begin + g_.group, g_.dim);
    for (int r = 0; r < rows; r++) {
      const int16_t* q = operands.q(first + r);
      int32_t products = 0, sum = 0;  // at most 64 * 32767 * 255 < 2^31
      for (int i = begin; i < end; i++) {
        products += q[i] * codes[i];
        sum += q[i];
      }
      totals[r] += scale * static_cast<double>(products) + zero * static_cast<double>(sum);
    }
  }
  for (int r = 0; r < rows; r++)
    scores[r * stride] = static_cast<float>(operands.rows[first + r].unit[0] * totals[r]);
}

void CpuVectors::prepare(const void* queries, int64_t first, int64_t rows, const Operands& operands) {
  pool_.parallel_for(rows, [&](int64_t row, int) {
    const FpEnvironment environment;
    alignas(64) float vector[format::kMaxVectorDim];
    kernels_.to_float(g_.io_dtype, vector_at(queries, first + row), g_.dim, vector);
    prepare_query(vector, &operands.rows[row], operands.q(row), operands.rotated(row));
  });
}

void CpuVectors::inner_products(const void* queries, int64_t num_queries, const uint8_t* codes, int64_t count,
                                float* out, void*) {
  if (num_queries == 0 || count == 0) return;
  const Operands operands(*this, std::min(num_queries, kPassRows));
  for (int64_t pass = 0; pass < num_queries; pass += kPassRows) {
    const int64_t rows = std::min(kPassRows, num_queries - pass);
    prepare(queries, pass, rows, operands);
    pool_.parallel_for((count + kRecords - 1) / kRecords, [&](int64_t block, int) {
      const FpEnvironment environment;
      const int64_t begin = block * kRecords, end = std::min(count, begin + kRecords);
      for (int64_t row = 0; row < rows; row += kRows) {
        const int n = static_cast<int>(std::min<int64_t>(kRows, rows - row));
        for (int64_t i = begin; i < end; i++)
          score_record(codes + i * g_.record_bytes, operands, row, n, out + (pass + row) * count + i, count);
        for (int r = 0; r < n; r++)
          if (!operands.rows[row + r].finite)
            std::fill(out + (pass + row + r) * count + begin, out + (pass + row + r) * count + end, NAN);
      }
    });
  }
}

// The best so far, at most `most`.
struct CpuVectors::Heap {
  Found* found;
  int64_t* size;
  int64_t most;

  void offer(Found one) {
    if (*size < most) {
      found[(*size)++] = one;
      std::push_heap(found, found + *size, better);
    } else if (better(one, found[0])) {
      std::pop_heap(found, found + most, better);
      found[most - 1] = one;
      std::push_heap(found, found + most, better);
    }
  }
};

void CpuVectors::scan(const SearchRequest& s, const Operands& operands, const Segment& work,
                      Heap* heap) const {
  float scores[kRows * kRecords];
  for (int64_t begin = work.begin; begin < work.end; begin += kRecords) {
    const int64_t count = std::min(kRecords, work.end - begin);
    for (int64_t i = 0; i < count; i++)
      score_record(s.codes + (begin + i) * g_.record_bytes, operands, work.row, work.rows, scores + i,
                   kRecords);
    for (int r = 0; r < work.rows; r++) {
      if (!operands.rows[work.row + r].finite) continue;
      for (int64_t i = 0; i < count; i++) {
        const float score = scores[r * kRecords + i];
        heap[r].offer(Found{s.bias ? score + s.bias[begin + i] : score, begin + i});
      }
    }
  }
}

void CpuVectors::search(const SearchRequest& request, void*) {
  const SearchRequest& s = request;
  if (s.num_queries == 0) return;
  // Each segment of records keeps its own best of every query; they are merged in the end.
  const int64_t segments = std::clamp<int64_t>(s.count / kRecords, 1, 4 * pool_.num_threads()),
                kept = std::min(s.k, (s.count + segments - 1) / segments);
  const int64_t heap_bytes = std::max<int64_t>(segments * kept * static_cast<int64_t>(sizeof(Found)), 1);
  const int64_t pass_rows =
      std::min(s.num_queries, std::clamp<int64_t>(kHeapBytes / heap_bytes, 1, kPassRows));
  const Operands operands(*this, pass_rows);
  const HostBlock heaps_block(ops_, pass_rows * heap_bytes, "search");
  const HostBlock sizes_block(ops_, pass_rows * segments * static_cast<int64_t>(sizeof(int64_t)), "search");
  Found* const heaps = static_cast<Found*>(heaps_block.get());
  int64_t* const sizes = static_cast<int64_t*>(sizes_block.get());
  for (int64_t pass = 0; pass < s.num_queries; pass += pass_rows) {
    const int64_t rows = std::min(pass_rows, s.num_queries - pass), row_blocks = (rows + kRows - 1) / kRows;
    prepare(s.queries, pass, rows, operands);
    pool_.parallel_for(segments * row_blocks, [&](int64_t task, int) {
      const FpEnvironment environment;
      const int64_t segment = task / row_blocks, row = task % row_blocks * kRows;
      const Segment work = {s.count * segment / segments, s.count * (segment + 1) / segments, row,
                            static_cast<int>(std::min<int64_t>(kRows, rows - row))};
      Heap heap[kRows];
      for (int r = 0; r < work.rows; r++) {
        const int64_t at = (row + r) * segments + segment;
        sizes[at] = 0;
        heap[r] = Heap{heaps + at * kept, &sizes[at], kept};
      }
      scan(s, operands, work, heap);
    });
    pool_.parallel_for(rows, [&](int64_t row, int) {
      Found* const all = heaps + row * segments * kept;
      int64_t found = 0;
      for (int64_t segment = 0; segment < segments; segment++)
        for (int64_t i = 0; i < sizes[row * segments + segment]; i++) all[found++] = all[segment * kept + i];
      const int64_t best = std::min(found, s.k);
      std::partial_sort(all, all + best, all + found, better);
      for (int64_t i = 0; i < s.k; i++) {
        s.scores[(pass + row) * s.k + i] = i < best ? all[i].score : -INFINITY;
        s.ids[(pass + row) * s.k + i] = i < best ? all[i].id : -1;
      }
    });
  }
}

}  // namespace cpu
}  // namespace tq
