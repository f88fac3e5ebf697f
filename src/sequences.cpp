// SPDX-License-Identifier: Apache-2.0
// Calls on sequences: they live, fork, lose tokens and end. Freed pages are cleared in stream order.
#include <vector>

#include "all_coded.h"

namespace tq {
namespace {

long long ll(int64_t x) { return static_cast<long long>(x); }

}  // namespace

int64_t Cache::create_sequence() {
  const Gate::Use use(gate_, true);
  arrays_.table.prepare_slot();
  return arrays_.table.commit_create();
}

void Cache::scrub(int group, const int32_t* pages, int64_t count, void* stream) {
  if (count > 0 && geometry().zero_on_free) backend_->scrub_pages(group, pages, count, stream);
}

// Clears the pages that the next commit makes free. Once one of them may be clear the call cannot fail any
// more, so whatever fails is left to the next plan; but a stream that is captured is refused before.
void Cache::scrub_dropped(int32_t group, const int32_t* pages, int64_t count, void* stream) {
  try {
    scrub(group, pages, count, stream);
  } catch (const Error& error) {
    if (error.status() == Status::kCapture) throw;
    arrays_.table.group(group).leave_uncleared();
  }
}

// Of truncating to `length`.
void Cache::scrub_behind(int32_t slot, int64_t length, void* stream) {
  for (int32_t i = 0; i < arrays_.table.num_groups(); i++) {
    int64_t count;
    const int32_t* pages = arrays_.table.group(i).exclusive_pages(slot, length, &count);
    scrub_dropped(i, pages, count, stream);
  }
}

// Clears what the last plan gave back and nobody took; before the next plan, and when a sequence ends or
// loses tokens. Not in that plan's call: when it is known to be in force, nothing may fail any more.
void Cache::scrub_uncleared(void* stream) {
  for (int32_t i = 0; i < arrays_.table.num_groups(); i++) {
    PageTable& group = arrays_.table.group(i);
    int64_t count;
    const int32_t* pages = group.uncleared(&count);
    scrub(i, pages, count, stream);
    group.forget_uncleared();
  }
}

// Pages that the prepared plan moves from one sequence to another, once the plan cannot be taken back. A
// device that fails here fails for good, and what is left of the old tokens is never read.
void Cache::scrub_handed_over(void* stream) noexcept {
  for (int32_t i = 0; i < arrays_.table.num_groups(); i++) {
    int64_t count;
    const int32_t* pages = arrays_.table.group(i).handed_over(&count);
    try {
      scrub(i, pages, count, stream);
    } catch (const Error&) {
    }
  }
}

void Cache::free_sequence(int64_t id, void* stream) {
  const Gate::Use use(gate_, true);
  const int32_t slot = arrays_.table.find(id, "sequence");
  check_stream(stream);
  scrub_uncleared(stream);  // the sequence's own may be among them
  // Now, because creating a sequence has no stream; and first, because nothing behind it fails.
  backend_->start_slot(slot, stream);
  scrub_behind(slot, 0, stream);
  lapse(slot, "freed");
  arrays_.last[slot] = nullptr;
  arrays_.written.truncate(slot, 0);
  arrays_.table.commit_free(slot);
}

int64_t Cache::fork_sequence(int64_t source, void* stream) {
  const Gate::Use use(gate_, true);
  const int32_t slot = arrays_.table.find(source, "source");
  check_stream(stream);
  const int32_t target = arrays_.table.prepare_slot();
  backend_->copy_slot(slot, target, stream);
  // Layers into which a plan in force is not appended yet stay unwritten in the fork: what the source appends
  // to a shared page afterwards lies behind what the fork may read.
  arrays_.written.fork(slot, target);
  return arrays_.table.commit_fork(slot);
}

void Cache::truncate_sequence(int64_t id, int64_t length, void* stream) {
  const Gate::Use use(gate_, true);
  const int32_t slot = arrays_.table.find(id, "sequence");
  check_stream(stream);
  TQ_CHECK(length >= 0 && length <= arrays_.table.length(slot), Status::kInvalidArgument,
           "length = %lld: must be 0 .. %lld, the sequence's length", ll(length),
           ll(arrays_.table.length(slot)));
  shorten(slot, length, stream);
}

void Cache::shorten(int32_t slot, int64_t length, void* stream) {
  if (length == arrays_.table.length(slot)) return;  // nothing changes, a plan in force least of all
  arrays_.table.check_truncate(slot, length);
  scrub_uncleared(stream);
  scrub_behind(slot, length, stream);
  lapse(slot, "truncated");
  arrays_.written.truncate(slot, length);
  arrays_.table.commit_truncate(slot, length);
}

void Cache::flush_sequence(int64_t id, void* stream) {
  const Gate::Use use(gate_, true);
  const int32_t slot = arrays_.table.find(id, "sequence");
  check_stream(stream);
  if (!arrays_.table.can_flush(slot)) return;
  AllCoded codes(*this, slot, stream);
  scrub_uncleared(stream);
  const int32_t group = arrays_.table.raw_group();
  int64_t count;
  const int32_t* pages = arrays_.table.group(group).flushed_pages(slot, &count);
  scrub_dropped(group, pages, count, stream);
  codes.keep();
  lapse(slot, "flushed");
  arrays_.table.commit_flush(slot);
}

void Cache::take_out(int32_t slot, const TokenMap& tokens, void* stream) {
  if (tokens.first_moved() == tokens.length) return shorten(slot, tokens.length, stream);
  AllCoded codes(*this, slot, stream);
  scrub_uncleared(stream);
  arrays_.table.prepare_move(slot, tokens);
  backend_->move_tokens(MoveRequest{tokens, arrays_.table.moves(), stream});
  codes.moved(tokens);
  lapse(slot, "left without some of its tokens");
  arrays_.written.move(slot, tokens);
  arrays_.table.commit_move(slot, tokens);
  // Pages that became free were read from until now. The call has succeeded: what fails is left to the next.
  try {
    scrub_uncleared(stream);
  } catch (const Error&) {
  }
}

void Cache::remove_tokens(int64_t id, int64_t first, int64_t count, void* stream) {
  const Gate::Use use(gate_, true);
  const int32_t slot = arrays_.table.find(id, "sequence");
  check_stream(stream);
  const int64_t length = arrays_.table.length(slot);
  TQ_CHECK(first >= 0 && first <= length, Status::kInvalidArgument,
           "first = %lld: the sequence has %lld tokens", ll(first), ll(length));
  TQ_CHECK(count >= 0 && count <= length - first, Status::kInvalidArgument,
           "count = %lld: the sequence has %lld tokens from first = %lld on", ll(count), ll(length - first),
           ll(first));
  if (count > 0) take_out(slot, TokenMap{length - count, first, count, nullptr}, stream);
}

void Cache::select_tokens(int64_t id, const int64_t* positions, int64_t count, void* stream) {
  const Gate::Use use(gate_, true);
  const int32_t slot = arrays_.table.find(id, "sequence");
  check_stream(stream);
  const int64_t length = arrays_.table.length(slot);
  TQ_CHECK(count >= 0 && count <= length, Status::kInvalidArgument,
           "count = %lld: must be 0 .. %lld, the sequence's length", ll(count), ll(length));
  TQ_CHECK(positions || count == 0, Status::kInvalidArgument, "positions = NULL: count = %lld", ll(count));
  const std::vector<int64_t> kept(positions, positions + count);  // what is checked is what is used
  for (int64_t i = 0; i < count; i++) {
    const int64_t position = kept[static_cast<size_t>(i)];
    TQ_CHECK(position >= 0 && position < length, Status::kInvalidArgument,
             "positions[%lld] = %lld: the sequence has %lld tokens", ll(i), ll(position), ll(length));
    TQ_CHECK(i == 0 || position > kept[static_cast<size_t>(i) - 1], Status::kInvalidArgument,
             "positions[%lld] = %lld: must be above positions[%lld] = %lld", ll(i), ll(position), ll(i - 1),
             ll(kept[static_cast<size_t>(i) - 1]));
  }
  take_out(slot, TokenMap{count, 0, 0, kept.data()}, stream);
}

int64_t Cache::sequence_length(int64_t id) const {
  const Gate::Use use(gate_, false);
  return arrays_.table.length(arrays_.table.find(id, "sequence"));
}

uint64_t Cache::sequence_flags(int64_t id) const {
  const Gate::Use use(gate_, false);
  const int32_t slot = arrays_.table.find(id, "sequence");
  return backend_->slot_flags(slot) | (arrays_.table.window_is_short(slot) ? kNoticedShortWindow : 0);
}

}  // namespace tq
