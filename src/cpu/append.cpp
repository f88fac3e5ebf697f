// SPDX-License-Identifier: Apache-2.0
// Append: new tokens into tiles, exact copies and flags. A task is one tile of one kv head with both sides,
// so every tile has one writer and full tiles are packed as a whole.
#include <algorithm>

#include "cpu/cpu_backend_impl.h"
#include "cpu/kernels/row_codes.h"

namespace tq {
namespace cpu {
namespace {

// One side of one tile: `rows` are the caller's vectors of tokens first .. first + count - 1 of the tile.
struct SideJob {
  const Kernels& kernels;
  const CodeKernels& code;
  const format::VectorCoder& coder;
  const format::SideLayout& layout;
  Kind kind;
  DataType type;
  const uint8_t* rows;
  int64_t row_stride;  // bytes
  int first, count;
  uint32_t* words;
  uint16_t* scales;                   // null for raw sides
  const format::RowCoder* row_coder;  // of sides by rows
};

// Vectors of one side and kv head in k or v.
struct InputRows {
  const uint8_t* first;
  int64_t stride;  // bytes

  InputRows(const AppendRequest& request, const LayerGeometry& layer, DataType type, Kind kind, int head) {
    const bool keys = layer.latent || kind == Kind::kKey;
    const TensorStrides& strides = keys ? request.key_strides : request.value_strides;
    first = static_cast<const uint8_t*>(keys ? request.k : request.v) +
            (head * strides.head + layer.input_offset(kind)) * dtype_bytes(type);
    stride = strides.token * dtype_bytes(type);
  }
  const uint8_t* at(int64_t row) const { return first + row * stride; }
};

// 16 bits of one 16-bit input value, as raw sides and exact copies store it.
uint16_t half_bits(DataType type, const uint8_t* source, int i, bool* replaced) {
  uint16_t h;
  memcpy(&h, source + 2 * i, 2);
  return type == DataType::kF16 ? format::raw_from_f16(h, replaced) : format::raw_from_bf16(h, replaced);
}
float float_at(const uint8_t* source, int i) {
  float x;
  memcpy(&x, source + 4 * i, 4);
  return x;
}

void store_raw_side(const SideJob& job, Noticed* noticed) {
  uint16_t* out = reinterpret_cast<uint16_t*>(job.words) + static_cast<int64_t>(job.first) * job.layout.dim;
  for (int row = 0; row < job.count; row++, out += job.layout.dim) {
    const uint8_t* source = job.rows + row * job.row_stride;
    for (int i = 0; i < job.layout.dim; i++)
      out[i] = job.type == DataType::kF32
                   ? format::raw_from_f32(float_at(source, i), &noticed->replaced, &noticed->saturated)
                   : half_bits(job.type, source, i, &noticed->replaced);
  }
}

void encode_rows(const SideJob& job, Noticed* noticed) {
  alignas(64) float x[format::kMaxDim + 16] = {};
  for (int row = 0, token = job.first; row < job.count; row++, token++) {
    job.kernels.to_float(job.type, job.rows + row * job.row_stride, job.layout.dim, x);
    encode_row(job.kernels, *job.row_coder, job.layout, x, job.words + token * job.layout.row_words(),
               job.scales + token * job.layout.scales_per_token(), noticed);
  }
}

void encode_side(const SideJob& job, Noticed* noticed) {
  if (job.layout.raw()) return store_raw_side(job, noticed);
  if (job.layout.by_rows()) return encode_rows(job, noticed);
  const int stored = job.layout.stored;
  alignas(64) uint8_t codes[format::kTileTokens * format::kMaxDim];
  alignas(64) float x[format::kMaxDim];
  for (int row = 0; row < job.count; row++) {
    job.kernels.to_float(job.type, job.rows + row * job.row_stride, job.layout.dim, x);
    noticed->replaced |= job.kernels.encode(job.coder, x, codes + row * stored, &job.scales[job.first + row]);
  }
  if (job.count == format::kTileTokens) {
    job.code.pack(job.layout, job.kind, codes, job.words);
  } else {
    for (int row = 0; row < job.count; row++)
      job.code.merge_token(job.layout, job.kind, job.first + row, codes + row * stored, job.words);
  }
}

// One vector as an exact copy: the input type, so float32 keeps its range. The side has noticed what is not
// finite.
void store_copy(DataType type, const uint8_t* source, int dim, uint8_t* target) {
  bool replaced = false;
  for (int i = 0; i < dim; i++) {
    if (type == DataType::kF32) {
      const float x = format::sanitise(float_at(source, i), &replaced);
      memcpy(target + 4 * i, &x, 4);
    } else {
      const uint16_t h = half_bits(type, source, i, &replaced);
      memcpy(target + 2 * i, &h, 2);
    }
  }
}

}  // namespace

uint64_t CpuBackend::encode_run(const AppendRequest& request, int head, uint8_t* tile, const TileRun& run) {
  const Geometry& g = store_.geometry;
  const LayerStore& layer = store_.layer(request.layer);
  Noticed noticed;
  for (const Kind kind : {Kind::kKey, Kind::kValue}) {
    const bool key = kind == Kind::kKey;
    const format::SideLayout& layout = key ? layer.tile.key : layer.tile.value;
    const format::RowCoder row_coder = store_.row_coder(request.layer, head, kind);
    const format::VectorCoder& coder = row_coder.vector;
    const InputRows rows(request, layer, g.io_dtype, kind, head);
    uint8_t* words = tile + (key ? layer.tile.key_offset() : layer.tile.value_offset());
    uint8_t* scales = tile + (key ? layer.tile.key_scale_offset() : layer.tile.value_scale_offset());
    const SideJob job = {kernels_,
                         kernels_.of(key ? layer.key : layer.value),
                         coder,
                         layout,
                         kind,
                         g.io_dtype,
                         rows.at(run.row),
                         rows.stride,
                         run.first,
                         run.count,
                         reinterpret_cast<uint32_t*>(words),
                         layout.raw() ? nullptr : reinterpret_cast<uint16_t*>(scales),
                         &row_coder};
    encode_side(job, &noticed);
  }
  if (noticed.flags() != 0) noticed_.fetch_or(noticed.flags(), std::memory_order_relaxed);
  return noticed.flags();
}

void CpuBackend::append_tile(const AppendRequest& request, const StepSequence& sequence, int64_t tile,
                             int head) {
  const LayerStore& layer = store_.layer(request.layer);
  const int64_t start = tile * format::kTileTokens;
  const int64_t first = std::max(start, sequence.old_length),
                last = std::min(start + format::kTileTokens, sequence.length());
  const int32_t* pages = request.plan->maps[layer.group].row(sequence.page_row);
  const int64_t row = sequence.kv_row + (first - sequence.old_length);
  const uint64_t noticed =
      encode_run(request, head, store_.code_pages(layer).sequence_tile(pages, head, tile),
                 TileRun{row, static_cast<int>(first - start), static_cast<int>(last - first)});
  if (noticed != 0) store_.flags(sequence.flag).fetch_or(noticed, std::memory_order_relaxed);
  if (!sequence.has_raw_page(start)) return;
  const DataType io = store_.geometry.io_dtype;
  const int32_t* raw_pages = store_.raw_row(request.plan->maps, sequence);
  for (const Kind kind : {Kind::kKey, Kind::kValue}) {
    const InputRows rows(request, layer, io, kind, head);
    for (int64_t token = first; token < last; token++)
      store_copy(io, rows.at(row + (token - first)), layer.dim(kind),
                 store_.raw(layer, raw_pages, head, kind, token));
  }
}

void CpuBackend::append(const AppendRequest& request) {
  const StepRows& rows = request.plan->rows;
  const PlanLists& storage = *static_cast<const PlanLists*>(request.plan->storage);
  const int heads = store_.layer(request.layer).num_kv_heads;
  const int64_t* first = storage.first_task;
  pool_.parallel_for(storage.num_tasks * heads, [&](int64_t index, int) {
    const int64_t task = index / heads;
    const int64_t sequence = std::upper_bound(first, first + rows.num_sequences + 1, task) - first - 1;
    const int64_t first_tile = rows.sequences[sequence].old_length / format::kTileTokens;
    append_tile(request, rows.sequences[sequence], first_tile + (task - first[sequence]),
                static_cast<int>(index % heads));
  });
}

}  // namespace cpu
}  // namespace tq
