// SPDX-License-Identifier: Apache-2.0
// See work_list.h, and cut.h for the rules.
#include "cuda/schedule/work_list.h"

#include <string.h>

#include <algorithm>

#include "cuda/schedule/cut.h"

namespace tq {
namespace cuda {
namespace {

SequenceRows rows_of(const StepSequence& from) {
  return SequenceRows{from.page_row,
                      from.raw_slot,
                      static_cast<int32_t>(from.length()),
                      static_cast<int32_t>(from.old_length),
                      static_cast<int32_t>(from.query_tokens),
                      static_cast<int32_t>(from.length() - from.query_tokens),
                      static_cast<int32_t>(from.q_row),
                      static_cast<int32_t>(from.raw_first),
                      static_cast<int32_t>(from.sink_end)};
}

ListRule rule_of(const Geometry& geometry, const HeadShape& heads, int num_ctas) {
  return ListRule{heads.num_kv_heads, heads.q_per_kv, geometry.window_tokens + geometry.sink_tokens,
                  geometry.batch_invariant, num_ctas};
}

int stored_value_dim_max(const Geometry& geometry) {
  int dim = 0;
  for (int layer = 0; layer < geometry.num_layers; layer++)
    dim = std::max(dim, (geometry.tile(layer).value.stored + 31) / 32 * 32);
  return dim;
}

// Writes the entries of sequences with queries; returns their number and the weight of all their units.
int32_t list_entries(const ListRule& rule, const StepRows& rows, bool short_only, SequenceWork* entries,
                     int64_t* weight) {
  int32_t count = 0;
  for (int i = 0; i < rows.num_sequences; i++) {
    const SequenceRows all = rows_of(rows.sequences[i]);
    if (short_only && is_long(rule, all.query_tokens)) continue;
    for (int32_t first = 0; first < all.query_tokens; first += entries[count++].query_tokens) {
      entries[count] = entry_at(rule, all, first);
      *weight += entry_weight(rule, entries[count]);
    }
  }
  return count;
}

}  // namespace

int64_t max_entries(int64_t sequences, int64_t longest, int64_t query_tokens) {
  int64_t borders = 0;  // of one sequence
  for (int64_t border = next_border(0); border < longest; border = next_border(border)) borders++;
  // an entry more needs a query more
  return sequences + std::min(sequences * borders, query_tokens);
}

int64_t max_entries(const Geometry& geometry) {
  int64_t longest = 0;
  for (int i = 0; i < geometry.num_groups; i++)
    longest = std::max(longest, geometry.groups[i].max_sequence_pages * geometry.groups[i].page_size);
  return max_entries(geometry.max_batch_sequences, longest, geometry.max_batch_tokens);
}

int64_t work_capacity(const Geometry& geometry, int num_ctas) {
  return work_bytes(num_ctas, max_entries(geometry));
}

int64_t attend_workspace_capacity(const Geometry& geometry, int num_ctas) {
  return counter_bytes(num_ctas) + max_slots(num_ctas) * slot_floats(stored_value_dim_max(geometry)) * 4;
}

int64_t build_work(const Geometry& geometry, const HeadShape& heads, const StepRows& rows, int num_ctas,
                   uint8_t* work, bool short_only) {
  const ListRule rule = rule_of(geometry, heads, num_ctas);
  CtaWork* ctas = reinterpret_cast<CtaWork*>(work + sizeof(WorkHeader));
  SequenceWork* entries = reinterpret_cast<SequenceWork*>(ctas + num_ctas);
  int64_t total = 0;
  const int32_t count = list_entries(rule, rows, short_only, entries, &total);
  Border start = {0, 0, 0, 0};
  uint32_t units = 0;
  int32_t at = 0, cut = 0;
  const auto weight_at = [&] { return at < count ? entry_weight(rule, entries[at]) : 0; };
  int64_t weight = 0, own = weight_at();  // of the entries before `at`, of that one
  for (int c = 0; c < num_ctas; c++) {
    const int64_t target = border_weight(total, num_ctas, c + 1);
    while (at < count && target - weight >= own) {
      weight += own;
      units += entry_units(rule, entries[at]);
      at++;
      own = weight_at();
    }
    const Border end = at == count ? Border{count, 0, 0, units}
                                   : border_inside(rule, entries[at], at, target - weight, units);
    ctas[c] = run_between(entries[start.sequence], start, end, cut, c + 1);
    if (cuts_anew(end, start)) cut = c + 1;
    start = end;
  }
  const WorkHeader header = work_header(num_ctas, count, cut);
  memcpy(work, &header, sizeof header);
  return work_bytes(num_ctas, count);
}

bool is_long(const Geometry& geometry, const HeadShape& heads, const StepSequence& sequence) {
  return is_long(rule_of(geometry, heads, 0), sequence.query_tokens);
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
    static_cast<SequenceRows&>(to) = rows_of(from);
    to.row_blocks = blocks_of_rows(rule_of(geometry, heads, num_ctas), from.query_tokens, kPrefillRows);
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
