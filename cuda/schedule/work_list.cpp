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

// Walks over entries by weight: borders at weights that do not go down.
class Borders {
 public:
  Borders(const ListRule& rule, const SequenceWork* entries, int32_t begin, int32_t end)
      : rule_(rule), entries_(entries), at_(begin), end_(end), own_(own_weight()) {}

  // The first unit that starts at or after this weight.
  Border find(int64_t target) {
    go_to(target);
    return at_ == end_ ? Border{end_, 0, 0, units_}
                       : border_inside(rule_, entries_[at_], at_, target - weight_, units_);
  }
  // The last border at or before this weight.
  Border find_last(int64_t target) {
    go_to(target);
    if (at_ == end_) return Border{end_, 0, 0, units_};
    const BlockWeights w = block_weights(rule_, entries_[at_]);
    const int64_t inside = target - weight_, block = inside / total_weight(w);
    const int32_t unit = units_within(w, static_cast<int32_t>(inside - block * total_weight(w)));
    return Border{at_, static_cast<int32_t>(block), unit,
                  units_ + static_cast<uint32_t>(block) * static_cast<uint32_t>(w.splits) +
                      static_cast<uint32_t>(unit)};
  }
  // The weight in front of a border that was found last.
  int64_t weight_of(const Border& border) const {
    if (border.sequence != at_) return weight_ + (at_ < end_ ? own_ : 0);
    if (at_ == end_) return weight_;
    const BlockWeights w = block_weights(rule_, entries_[at_]);
    return weight_ + static_cast<int64_t>(border.block) * total_weight(w) + start_of_unit(w, border.unit);
  }

 private:
  int64_t own_weight() const { return at_ < end_ ? entry_weight(rule_, entries_[at_]) : 0; }
  void go_to(int64_t target) {
    while (at_ < end_ && target - weight_ >= own_) {
      weight_ += own_;
      units_ += entry_units(rule_, entries_[at_]);
      at_++;
      own_ = own_weight();
    }
  }

  const ListRule& rule_;
  const SequenceWork* entries_;
  int32_t at_, end_;
  uint32_t units_ = 0;
  int64_t weight_ = 0, own_;  // of the entries before `at`, of that one
};

// Runs of equal weight, one for each CTA.
void build_runs(const ListRule& rule, const SequenceWork* entries, int32_t count, int64_t total,
                CtaWork* ctas, int32_t* cut) {
  Borders borders(rule, entries, 0, count);
  Border start = {0, 0, 0, 0};
  for (int c = 0; c < rule.num_ctas; c++) {
    const Border end = borders.find(border_weight(total, rule.num_ctas, c + 1));
    ctas[c] = run_between(entries[start.sequence], start, end, *cut, c + 1);
    if (cuts_anew(end, start)) *cut = c + 1;
    start = end;
  }
}

// Whether units are so large that runs of them end far apart: an eighth of a CTA's share.
constexpr int kUnevenShare = 8;

// Two runs for each CTA: one of the entries with several splits, which ends where the next unit would pass
// the CTA's share, and one of whole blocks of the others, which fills it up. Entries change their order. Not
// where units are small, or where the first runs take more CTAs than there are; then nothing is written.
bool build_two_runs(const ListRule& rule, SequenceWork* entries, int32_t count, int64_t total, CtaWork* ctas,
                    int32_t* cut) {
  const int64_t share = (total + rule.num_ctas - 1) / rule.num_ctas;
  const auto is_large = [&](const SequenceWork& entry) {
    return entry.num_splits > 1 && unit_weight(entry.split_tokens) * kUnevenShare > share;
  };
  if (std::none_of(entries, entries + count, is_large) ||
      std::all_of(entries, entries + count, [](const auto& e) { return e.num_splits > 1; }))
    return false;
  const int32_t large = static_cast<int32_t>(
      std::stable_partition(entries, entries + count, [](const auto& e) { return e.num_splits > 1; }) -
      entries);
  int64_t of_large = 0;
  for (int32_t i = 0; i < large; i++) of_large += entry_weight(rule, entries[i]);
  // The first runs, each with what it leaves of the share.
  Borders borders(rule, entries, 0, large);
  Border start = {0, 0, 0, 0};
  int64_t at = 0, room = 0;
  const int64_t most = share + share / 32;
  for (int c = 0; c < rule.num_ctas; c++) {
    Border end = start;
    int64_t to = at;
    if (at < of_large) {
      end = borders.find_last(at + most);
      to = borders.weight_of(end);
      if (to <= at) end = borders.find(at + 1), to = borders.weight_of(end);
    }
    ctas[c] = run_between(entries[start.sequence], start, end, *cut, c + 1);
    if (cuts_anew(end, start)) *cut = c + 1;
    ctas[c].reserved[0] = static_cast<int32_t>(std::max<int64_t>(share - (to - at), 0));  // what it leaves
    room += ctas[c].reserved[0];
    start = end;
    at = to;
  }
  if (at < of_large) {  // more CTAs than there are
    *cut = 0;
    return false;
  }
  CtaWork* const second = reinterpret_cast<CtaWork*>(entries + count);
  Borders others(rule, entries, large, count);
  Border from = {large, 0, 0, 0};
  int64_t before = 0;
  for (int c = 0; c < rule.num_ctas; c++) {
    before += ctas[c].reserved[0];
    ctas[c].reserved[0] = 0;
    const bool last = c + 1 == rule.num_ctas;
    Border end =
        others.find(last ? total - of_large : (total - of_large) * before / std::max<int64_t>(room, 1));
    if (end.unit > 0) {  // whole blocks
      end.index += static_cast<uint32_t>(entries[end.sequence].num_splits - end.unit);
      end.unit = 0;
      if (++end.block == num_blocks(rule, entries[end.sequence])) end.sequence++, end.block = 0;
    }
    second[c] = run_between(entries[from.sequence], from, end, 0, c + 1);
    if (second[c].num_units > 0) {
      if (ctas[c].num_units == 0) {
        ctas[c] = second[c];
      } else {
        ctas[c].second =
            static_cast<int32_t>(count + c * static_cast<int64_t>(sizeof(CtaWork) / sizeof(SequenceWork)));
        ctas[c].num_units += second[c].num_units;
        ctas[c].jobs = 0;
      }
    }
    from = end;
  }
  return true;
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
  return work_bytes(num_ctas, max_entries(geometry)) + num_ctas * static_cast<int64_t>(sizeof(CtaWork));
}

int64_t attend_workspace_capacity(const Geometry& geometry, int num_ctas) {
  return counter_bytes(num_ctas) + max_slots(num_ctas) * slot_floats(stored_value_dim_max(geometry)) * 4;
}

int64_t build_work(const Geometry& geometry, const HeadShape& heads, const StepRows& rows, int num_ctas,
                   uint8_t* work, bool short_only, bool second_runs) {
  const ListRule rule = rule_of(geometry, heads, num_ctas);
  CtaWork* ctas = reinterpret_cast<CtaWork*>(work + sizeof(WorkHeader));
  SequenceWork* entries = reinterpret_cast<SequenceWork*>(ctas + num_ctas);
  int64_t total = 0;
  const int32_t count = list_entries(rule, rows, short_only, entries, &total);
  int32_t cut = 0;
  const bool two = second_runs && build_two_runs(rule, entries, count, total, ctas, &cut);
  if (!two) build_runs(rule, entries, count, total, ctas, &cut);
  const WorkHeader header = work_header(num_ctas, count, cut);
  memcpy(work, &header, sizeof header);
  return work_bytes(num_ctas, count) + (two ? num_ctas * static_cast<int64_t>(sizeof(CtaWork)) : 0);
}

bool is_long(const Geometry& geometry, const HeadShape& heads, const StepSequence& sequence) {
  return is_long(rule_of(geometry, heads, 0), sequence.query_tokens);
}

int few_sequences(const Geometry& geometry, const HeadShape& heads, const StepRows& rows) {
  const ListRule rule = rule_of(geometry, heads, 0);
  int32_t asked = 0;
  for (int i = 0; i < rows.num_sequences; i++) {
    const StepSequence& sequence = rows.sequences[i];
    if (sequence.query_tokens == 0) continue;
    // One entry of one block: places in the list are the numbers of blocks.
    if (!is_few(rule, ++asked, sequence.query_tokens, sequence.length())) return 0;
  }
  return asked;
}

int64_t pair_capacity(const Geometry& geometry, int num_ctas) {
  return work_capacity(geometry, num_ctas) + static_cast<int64_t>(sizeof(PrefillHeader)) +
         geometry.max_batch_sequences * static_cast<int64_t>(sizeof(PrefillSequence));
}

const PrefillHeader& prefill_header(const Geometry& geometry, int num_ctas, const uint8_t* pair) {
  return *reinterpret_cast<const PrefillHeader*>(pair + work_capacity(geometry, num_ctas));
}

int64_t build_pair(const Geometry& geometry, const HeadShape& heads, const StepRows& rows, int num_ctas,
                   uint8_t* pair, bool second_runs) {
  build_work(geometry, heads, rows, num_ctas, pair, true, second_runs);
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
