// SPDX-License-Identifier: Apache-2.0
// See work_list.h. Borders of equal weight are found by arithmetic in each sequence, never by walking over
// units: a prefill has millions of them.
#include "cuda/schedule/work_list.h"

#include <string.h>

#include <algorithm>

#include "status.h"

namespace tq {
namespace cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Weights of the units of one block of an entry.
struct BlockWeights {
  int64_t full, last, exact;  // of all splits but the last, the last, the exact unit (0 = none)
  int64_t splits, units;

  BlockWeights(const Geometry& geometry, const SequenceWork& sequence) {
    full = ceil_div(sequence.split_tokens, kStepTokens) + kUnitWeight;
    splits = sequence.num_splits;
    const int64_t end = static_cast<int64_t>(sequence.position) + sequence.query_tokens;
    last =
        ceil_div(end - (splits - 1) * static_cast<int64_t>(sequence.split_tokens), kStepTokens) + kUnitWeight;
    units = sequence.units_per_block;
    exact = units > splits
                ? ceil_div(geometry.window_tokens + geometry.sink_tokens, kStepTokens) + kUnitWeight
                : 0;
  }
  int64_t total() const { return (splits - 1) * full + last + exact; }
  // First unit that starts at or after this weight; `units` if none.
  int64_t unit_at(int64_t weight) const {
    const int64_t index = ceil_div(weight, full);
    if (index < splits) return index;
    if (units > splits && weight <= (splits - 1) * full + last) return splits;
    return units;
  }
};

// The queries first .. first + count - 1.
SequenceRows sequence_rows(const StepSequence& from, int64_t first, int64_t count) {
  return SequenceRows{from.page_row,
                      from.raw_slot,
                      static_cast<int32_t>(from.length()),
                      static_cast<int32_t>(from.old_length),
                      static_cast<int32_t>(count),
                      static_cast<int32_t>(from.length() - from.query_tokens + first),
                      static_cast<int32_t>(from.q_row + first),
                      static_cast<int32_t>(from.raw_first),
                      static_cast<int32_t>(from.sink_end)};
}

// The entry that begins with query `first`.
SequenceWork sequence_work(const Geometry& geometry, const HeadShape& heads, const StepSequence& from,
                           int64_t first) {
  const int64_t position = from.length() - from.query_tokens + first;
  const int64_t count = std::min(from.query_tokens - first, next_border(position) - position);
  SequenceWork to = {};
  static_cast<SequenceRows&>(to) = sequence_rows(from, first, count);
  to.row_blocks = static_cast<int32_t>(ceil_div(count * heads.q_per_kv, kRowsPerBlock));
  to.split_tokens = split_tokens(position, is_long(geometry, heads, from));
  to.num_splits = static_cast<int32_t>(
      std::min<int64_t>(kMaxSplits, std::max<int64_t>(1, ceil_div(from.length(), to.split_tokens))));
  to.units_per_block = to.num_splits + (geometry.window_tokens + geometry.sink_tokens > 0 ? 1 : 0);
  return to;
}

// The least split, of at least kMinSplitTokens, of which kMaxSplits hold what a row at `position` sees.
int64_t least_split(int64_t position) {
  int64_t split = kMinSplitTokens;
  while (split * kMaxSplits <= position) split *= 2;
  return split;
}

// A place between units.
struct Border {
  int32_t sequence;  // num_sequences at the end
  int64_t block, unit;
  int64_t index;  // units before it
};

// Jobs of a run that begins in this sequence, at most; 0 if it goes on in another, or if some units are
// exact.
int32_t run_jobs(const SequenceWork& sequence, const Border& start, const Border& end) {
  const bool of_one = end.sequence == start.sequence ||
                      (end.sequence == start.sequence + 1 && end.block == 0 && end.unit == 0);
  if (!of_one || sequence.units_per_block > sequence.num_splits) return 0;
  const int64_t each = ceil_div(std::min(sequence.split_tokens, sequence.length),
                                job_tokens(sequence.split_tokens, INT32_MAX));
  return static_cast<int32_t>(std::min<int64_t>((end.index - start.index) * each, INT16_MAX));
}

int stored_value_dim_max(const Geometry& geometry) {
  int dim = 0;
  for (int layer = 0; layer < geometry.num_layers; layer++)
    dim = std::max(dim, (geometry.tile(layer).value.stored + 31) / 32 * 32);
  return dim;
}

// Writes the entries of sequences with queries and their number; returns the weight of all their units.
int64_t list_sequences(const Geometry& geometry, const HeadShape& heads, const StepRows& rows,
                       bool short_only, SequenceWork* sequences, WorkHeader& header) {
  int64_t total = 0;
  for (int i = 0; i < rows.num_sequences; i++) {
    const StepSequence& from = rows.sequences[i];
    if (short_only && is_long(geometry, heads, from)) continue;
    for (int64_t first = 0; first < from.query_tokens;) {
      SequenceWork& sequence = sequences[header.num_sequences++];
      sequence = sequence_work(geometry, heads, from, first);
      total += BlockWeights(geometry, sequence).total() * sequence.row_blocks * heads.num_kv_heads;
      first += sequence.query_tokens;
    }
  }
  return total;
}

}  // namespace

int32_t split_tokens(int64_t position, bool is_long) {
  const int64_t split = least_split(position) * (is_long ? kMaxSplits : 1);
  return static_cast<int32_t>(std::min<int64_t>(split, 1 << 30));
}

int64_t next_border(int64_t position) { return least_split(position) * kMaxSplits; }

int64_t max_entries(const Geometry& geometry) {
  int64_t longest = 0, borders = 0;  // of one sequence
  for (int i = 0; i < geometry.num_groups; i++)
    longest = std::max(longest, geometry.groups[i].max_sequence_pages * geometry.groups[i].page_size);
  for (int64_t border = next_border(0); border < longest; border = next_border(border)) borders++;
  // an entry more needs a query more
  return geometry.max_batch_sequences +
         std::min(geometry.max_batch_sequences * borders, geometry.max_batch_tokens);
}

int64_t work_capacity(const Geometry& geometry, int num_ctas) {
  return work_bytes(num_ctas, max_entries(geometry));
}

int64_t attend_workspace_capacity(const Geometry& geometry, int num_ctas) {
  return counter_bytes(num_ctas) + max_slots(num_ctas) * slot_floats(stored_value_dim_max(geometry)) * 4;
}

int64_t build_work(const Geometry& geometry, const HeadShape& heads, const StepRows& rows, int num_ctas,
                   uint8_t* work, bool short_only) {
  CtaWork* ctas = reinterpret_cast<CtaWork*>(work + sizeof(WorkHeader));
  SequenceWork* sequences = reinterpret_cast<SequenceWork*>(ctas + num_ctas);
  WorkHeader header = {num_ctas, 0, 0, 0};
  const int64_t total = list_sequences(geometry, heads, rows, short_only, sequences, header);

  // Border c: the first unit that starts at or after c / num_ctas of the weight.
  Border start = {0, 0, 0, 0};
  int64_t sequence_start = 0, sequence_units = 0;  // weight and units before start.sequence
  int64_t cut_units = 0;                           // identifies the block that the last given slots belong to
  int32_t cut_sequence = -1;
  int64_t cut_block = -1;
  for (int c = 0; c < num_ctas; c++) {
    Border end = {header.num_sequences, 0, 0, sequence_units};
    const int64_t target = total / num_ctas * (c + 1) + total % num_ctas * (c + 1) / num_ctas;
    int32_t s = start.sequence;
    for (; s < header.num_sequences; s++) {
      const BlockWeights weights(geometry, sequences[s]);
      const int64_t blocks = static_cast<int64_t>(sequences[s].row_blocks) * heads.num_kv_heads;
      const int64_t inside = target - sequence_start;
      if (c + 1 < num_ctas && inside < weights.total() * blocks) {
        end.sequence = s;
        end.block = std::max<int64_t>(inside, 0) / weights.total();
        end.unit = inside <= 0 ? 0 : weights.unit_at(inside % weights.total());
        if (end.unit == weights.units) {
          end.unit = 0;
          end.block++;
        }
        end.index = sequence_units + end.block * weights.units + end.unit;
        if (end.block == blocks) {  // the border between two sequences: say it from the later one
          end = Border{s + 1, 0, 0, sequence_units + blocks * weights.units};
          sequence_start += weights.total() * blocks;
          sequence_units += blocks * weights.units;
        }
        break;
      }
      sequence_start += weights.total() * blocks;
      sequence_units += blocks * weights.units;
      end = Border{s + 1, 0, 0, sequence_units};
    }

    CtaWork& cta = ctas[c];
    cta = CtaWork{};
    cta.head_slot = cta.head_counter = cta.tail_slot = cta.tail_counter = -1;
    cta.num_units = static_cast<int32_t>(end.index - start.index);
    if (cta.num_units > 0) {
      cta.sequence = start.sequence;
      cta.block = static_cast<int32_t>(start.block);
      cta.split = static_cast<int32_t>(start.unit);
      cta.first = sequences[start.sequence];
      cta.jobs = run_jobs(cta.first, start, end);
      if (start.unit > 0) {  // the block was cut at an earlier border: its slots are the last given
        TQ_CHECK(cut_sequence == start.sequence && cut_block == start.block, Status::kInternal,
                 "work list: block %lld of sequence %d has no slots", static_cast<long long>(start.block),
                 start.sequence);
        cta.head_slot = static_cast<int32_t>(cut_units);
        cta.head_counter = header.num_counters - 1;
      }
      if (end.unit > 0 && !(cut_sequence == end.sequence && cut_block == end.block)) {
        cut_sequence = end.sequence;
        cut_block = end.block;
        cut_units = header.num_slots;
        header.num_slots += sequences[end.sequence].units_per_block;
        cta.tail_slot = static_cast<int32_t>(cut_units);
        cta.tail_counter = header.num_counters++;
      }
    }
    start = end;
  }
  memcpy(work, &header, sizeof header);
  return work_bytes(num_ctas, header.num_sequences);
}

bool is_long(const Geometry& geometry, const HeadShape& heads, const StepSequence& sequence) {
  return !geometry.batch_invariant && sequence.query_tokens * heads.q_per_kv >= kLongRows;
}

int64_t pair_capacity(const Geometry& geometry, int num_ctas) {
  return work_capacity(geometry, num_ctas) + static_cast<int64_t>(sizeof(PrefillHeader)) +
         geometry.max_batch_sequences * static_cast<int64_t>(sizeof(PrefillSequence));
}

const PrefillHeader& prefill_header(const Geometry& geometry, int num_ctas, const uint8_t* pair) {
  return *reinterpret_cast<const PrefillHeader*>(pair + work_capacity(geometry, num_ctas));
}

int64_t build_pair(const Geometry& geometry, const HeadShape& heads, const StepRows& rows, int num_ctas,
                   uint8_t* pair) {
  build_work(geometry, heads, rows, num_ctas, pair, true);
  const int64_t place = work_capacity(geometry, num_ctas);
  PrefillSequence* sequences = reinterpret_cast<PrefillSequence*>(pair + place + sizeof(PrefillHeader));
  PrefillHeader header = {0, 0, {0, 0}};
  for (int i = 0; i < rows.num_sequences; i++) {
    const StepSequence& from = rows.sequences[i];
    if (!is_long(geometry, heads, from)) continue;
    PrefillSequence& to = sequences[header.num_sequences++];
    to = PrefillSequence{};
    static_cast<SequenceRows&>(to) = sequence_rows(from, 0, from.query_tokens);
    to.row_blocks = static_cast<int32_t>(ceil_div(from.query_tokens * heads.q_per_kv, kPrefillRows));
  }
  // Long histories first: CTAs take items in this order. The order of equals is fixed, though no result
  // depends on it.
  std::sort(sequences, sequences + header.num_sequences,
            [](const PrefillSequence& a, const PrefillSequence& b) {
              return a.length != b.length ? a.length > b.length : a.page_row < b.page_row;
            });
  for (int i = 0; i < header.num_sequences; i++) {
    sequences[i].first_item = header.num_items;
    header.num_items += sequences[i].row_blocks * heads.num_kv_heads;
  }
  memcpy(pair + place, &header, sizeof header);
  return place + static_cast<int64_t>(sizeof header) +
         header.num_sequences * static_cast<int64_t>(sizeof(PrefillSequence));
}

}  // namespace cuda
}  // namespace tq
