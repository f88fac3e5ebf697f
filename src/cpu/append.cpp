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
  VectorRows rows;
  int64_t row;  // of the first vector
  int first, count;
  uint32_t* words;
  uint16_t* scales;                     // null for raw sides
  const format::RowCoder* row_coder;    // of sides by rows
  const format::BandCoder* band_coder;  // of banded keys
  const CodedSide* bands;
  bool from_copies;     // coded as exact copies of the vectors would be
  const float* matrix;  // of keys, by columns; or null

  const uint8_t* vector(int index) const { return rows.at(row + index); }
};

// Vectors of one side and kv head in k or v.
VectorRows input_rows(const AppendRequest& request, const LayerGeometry& layer, DataType type, Kind kind,
                      int head) {
  const bool keys = layer.latent || kind == Kind::kKey;
  const TensorStrides& strides = keys ? request.key_strides : request.value_strides;
  return VectorRows{static_cast<const uint8_t*>(keys ? request.k : request.v) +
                        (head * strides.head + layer.input_offset(kind)) * dtype_bytes(type),
                    strides.token * dtype_bytes(type)};
}

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
    const uint8_t* source = job.vector(row);
    for (int i = 0; i < job.layout.dim; i++)
      out[i] = job.type == DataType::kF32
                   ? format::raw_from_f32(float_at(source, i), &noticed->replaced, &noticed->saturated)
                   : half_bits(job.type, source, i, &noticed->replaced);
  }
}

// A vector as floats. What an exact copy of it holds is finite, whatever the type.
void load_vector(const SideJob& job, int index, float* x, Noticed* noticed) {
  job.kernels.to_float(job.type, job.vector(index), job.layout.dim, x);
  for (int i = 0; job.from_copies && job.type == DataType::kF16 && i < job.layout.dim; i++) {
    if (!format::is_infinite(x[i])) continue;
    x[i] = x[i] < 0 ? -format::kMaxHalf : format::kMaxHalf;
    noticed->replaced = true;
  }
  if (!job.matrix) return;
  float finite[format::kMaxDim];
  for (int i = 0; i < job.layout.dim; i++) finite[i] = format::sanitise(x[i], &noticed->replaced);
  apply_columns(job.matrix, job.layout.dim, finite, x);
}

void encode_rows(const SideJob& job, Noticed* noticed) {
  alignas(64) float x[format::kMaxDim + 16] = {};
  for (int row = 0, token = job.first; row < job.count; row++, token++) {
    load_vector(job, row, x, noticed);
    encode_row(job.kernels, *job.row_coder, job.layout, x, job.words + token * job.layout.row_words(),
               job.scales + token * job.layout.scales_per_token(), noticed);
  }
}

// codes [count][layout.stored] of the tokens from `first` on into a side's words.
void pack_tokens(const CodeKernels& code, const format::SideLayout& layout, Kind kind, int first, int count,
                 const uint8_t* codes, uint32_t* words) {
  if (count == format::kTileTokens) return code.pack(layout, kind, codes, words);
  for (int row = 0; row < count; row++)
    code.merge_token(layout, kind, first + row, codes + row * layout.stored, words);
}

// Each band of the run's keys is a side of its own, once its codes are known.
void encode_banded(const SideJob& job, Noticed* noticed) {
  constexpr int kBand = format::kGroupCodes;
  const int bands = job.layout.num_bands();
  alignas(64) uint8_t codes[format::kMaxBands][format::kTileTokens * kBand];
  alignas(64) float x[format::kMaxDim];
  uint16_t scales[format::kTileTokens][format::kMaxBands];
  for (int row = 0; row < job.count; row++) {
    alignas(64) uint8_t own[format::kMaxBands * kBand];
    load_vector(job, row, x, noticed);
    noticed->replaced |= format::encode_bands(*job.band_coder, x, own, scales[row], job.kernels.encode);
    for (int i = 0; i < bands; i++) std::copy_n(own + kBand * i, kBand, codes[i] + kBand * row);
  }
  for (int i = 0; i < bands; i++) {
    const format::SidePart part = format::side_part(job.layout, i);
    uint32_t* const words = job.words + part.word_offset / 4;
    uint16_t* const to = job.scales + part.scale_offset / 2;
    for (int row = 0; row < job.count; row++) to[job.first + row] = scales[row][i];
    if (!part.side.by_rows()) {
      pack_tokens(job.kernels.of(job.bands[i]), part.side, job.kind, job.first, job.count, codes[i], words);
      continue;
    }
    for (int row = 0; row < job.count; row++)
      format::pack_codes(codes[i] + kBand * row, part.side.bits, kBand,
                         reinterpret_cast<uint8_t*>(words + (job.first + row) * part.side.row_words()));
  }
}

void run_side(const SideJob& job, Noticed* noticed) {
  if (job.layout.raw()) return store_raw_side(job, noticed);
  if (job.layout.by_rows()) return encode_rows(job, noticed);
  if (job.layout.banded()) return encode_banded(job, noticed);
  const int stored = job.layout.stored;
  alignas(64) uint8_t codes[format::kTileTokens * format::kMaxDim];
  alignas(64) float x[format::kMaxDim];
  for (int row = 0; row < job.count; row++) {
    load_vector(job, row, x, noticed);
    noticed->replaced |= job.kernels.encode(job.coder, x, codes + row * stored, &job.scales[job.first + row]);
  }
  pack_tokens(job.code, job.layout, job.kind, job.first, job.count, codes, job.words);
}

// One vector as an exact copy: the input type, so float32 keeps its range.
void store_copy(DataType type, const uint8_t* source, int dim, uint8_t* target, bool* replaced) {
  for (int i = 0; i < dim; i++) {
    if (type == DataType::kF32) {
      const float x = format::sanitise(float_at(source, i), replaced);
      memcpy(target + 4 * i, &x, 4);
    } else {
      const uint16_t h = half_bits(type, source, i, replaced);
      memcpy(target + 2 * i, &h, 2);
    }
  }
}

}  // namespace

Noticed CpuBackend::encode_side(int32_t index, int head, Kind kind, const VectorRows& rows, uint8_t* tile,
                                const TileRun& run) {
  const LayerStore& layer = store_.layer(index);
  const bool key = kind == Kind::kKey;
  const format::SideLayout& layout = key ? layer.tile.key : layer.tile.value;
  const format::RowCoder row_coder = store_.row_coder(index, head, kind);
  const format::BandCoder bands = layout.banded() ? store_.band_coder(index, head) : format::BandCoder{};
  uint8_t* words = tile + (key ? layer.tile.key_offset() : layer.tile.value_offset());
  uint8_t* scales = tile + (key ? layer.tile.key_scale_offset() : layer.tile.value_scale_offset());
  const KeyMatrix* const matrix = key ? store_.key_matrix(index) : nullptr;
  Noticed noticed;
  run_side(SideJob{kernels_, kernels_.of(key ? layer.key : layer.value), row_coder.vector, layout, kind,
                   store_.geometry.io_dtype, rows, run.row, run.first, run.count,
                   reinterpret_cast<uint32_t*>(words),
                   layout.raw() ? nullptr : reinterpret_cast<uint16_t*>(scales), &row_coder, &bands,
                   layer.bands, store_.geometry.store_once, matrix ? matrix->head_columns(head) : nullptr},
           &noticed);
  return noticed;
}

uint64_t CpuBackend::encode_run(const AppendRequest& request, int head, uint8_t* tile, const TileRun& run) {
  const LayerStore& layer = store_.layer(request.layer);
  uint64_t flags = 0;
  for (const Kind kind : {Kind::kKey, Kind::kValue})
    flags |= encode_side(request.layer, head, kind,
                         input_rows(request, layer, store_.geometry.io_dtype, kind, head), tile, run)
                 .flags();
  if (flags != 0) noticed_.fetch_or(flags, std::memory_order_relaxed);
  return flags;
}

// What the codes of tokens would notice that have none yet: they are made and forgotten, where a side can
// saturate.
uint64_t CpuBackend::notice_uncoded(const AppendRequest& request, int head, const TileRun& run) {
  const LayerStore& layer = store_.layer(request.layer);
  const DataType io = store_.geometry.io_dtype;
  uint64_t flags = 0;
  for (const Kind kind : {Kind::kKey, Kind::kValue}) {
    const format::SideLayout& side = kind == Kind::kKey ? layer.tile.key : layer.tile.value;
    if (side.code().family != format::CodeFamily::kGrouped && !(side.raw() && io == DataType::kF32)) continue;
    // Two bytes a coordinate, and of groups of 16 two float16.
    alignas(64) uint8_t forgotten[2 * format::kTileTokens * format::kMaxDim * 3];
    flags |=
        encode_side(request.layer, head, kind, input_rows(request, layer, io, kind, head), forgotten, run)
            .flags();
  }
  return flags;
}

void CpuBackend::append_tile(const AppendRequest& request, const StepSequence& sequence, int64_t tile,
                             int head) {
  const LayerStore& layer = store_.layer(request.layer);
  const int64_t start = tile * format::kTileTokens;
  const int64_t first = std::max(start, sequence.old_length),
                last = std::min(start + format::kTileTokens, sequence.length());
  const int64_t coded = std::min(last, std::max(first, sequence.coded_end()));
  const int32_t* pages = request.plan->maps[layer.group].row(sequence.page_row);
  const int64_t row = sequence.kv_row + (first - sequence.old_length);
  uint64_t noticed = 0;
  if (first < coded)
    noticed = encode_run(request, head, store_.code_pages(layer).sequence_tile(pages, head, tile),
                         TileRun{row, static_cast<int>(first - start), static_cast<int>(coded - first)});
  if (coded < last)
    noticed |= notice_uncoded(
        request, head,
        TileRun{row + (coded - first), static_cast<int>(coded - start), static_cast<int>(last - coded)});
  if (sequence.has_raw_page(start)) noticed |= append_copies(request, sequence, head, first, last);
  if (noticed == 0) return;
  noticed_.fetch_or(noticed, std::memory_order_relaxed);
  store_.flags(sequence.flag).fetch_or(noticed, std::memory_order_relaxed);
}

// Exact copies of new tokens of one tile.
uint64_t CpuBackend::append_copies(const AppendRequest& request, const StepSequence& sequence, int head,
                                   int64_t first, int64_t last) {
  const LayerStore& layer = store_.layer(request.layer);
  const DataType io = store_.geometry.io_dtype;
  const int32_t* raw_pages = store_.raw_row(request.plan->maps, sequence);
  bool replaced = false;
  for (const Kind kind : {Kind::kKey, Kind::kValue}) {
    const VectorRows rows = input_rows(request, layer, io, kind, head);
    for (int64_t token = first; token < last; token++)
      store_copy(io, rows.at(sequence.kv_row + (token - sequence.old_length)), layer.dim(kind),
                 store_.raw(layer, raw_pages, head, kind, token), &replaced);
  }
  return replaced ? kNoticedNonfinite : 0;
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
