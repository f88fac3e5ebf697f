// SPDX-License-Identifier: Apache-2.0
// Tokens that are stored once (Geometry::store_once): raw while they are in the window, coded when they leave
// it. A plan codes the old tokens that it brings out, an append those of its own that are out at once
// (StepSequence::coded_end). Neither may wait for the other: the pages of copies that a plan gives back it
// may hand to other tokens.
#include <algorithm>

#include "cache.h"

namespace tq {

// The old tokens of the prepared growth that get codes. The shared pages that they go to are copied already.
void Cache::encode_planned(void* stream) {
  if (!geometry().store_once) return;
  int32_t count;
  const CodeRange* const ranges = arrays_.table.to_code(&count);
  if (count > 0) backend_->encode_tokens(EncodeRequest{ranges, count, arrays_.table.maps(), stream});
}

// Codes for all tokens of a sequence.
void Cache::code_all(int32_t slot, PageCopy* copy, void* stream) {
  SequenceTable& table = arrays_.table;
  if (table.coded(slot) == table.length(slot)) return;
  scrub_uncleared(stream);
  table.prepare_coding(slot, "sequence: coding its window");
  const PageTable& codes = table.group(0);
  if (codes.num_copies() > 0) *copy = codes.copies()[0];
  try {
    if (codes.num_copies() > 0) backend_->copy_pages(0, copy, 1, stream);
    encode_planned(stream);
  } catch (...) {
    table.cancel_coding();
    throw;
  }
  table.commit_coding();
}

// Gives up the codes of tokens from `coded` on, as far as a query at the last token reads their copies.
void Cache::give_up_codes(int32_t slot, int64_t coded, const PageCopy& copy, void* stream) {
  if (!geometry().store_once) return;
  SequenceTable& table = arrays_.table;
  coded = std::max({coded, table.length(slot) - geometry().window_tokens, table.exact(slot).first});
  if (coded >= table.coded(slot)) return;
  int64_t count;
  const int32_t* const pages = table.group(0).exclusive_pages(slot, coded, &count);
  scrub_dropped(0, pages, count, stream);
  table.group(0).commit_truncate(slot, coded);
  if (copy.source < 0) return;
  scrub_dropped(0, &copy.target, 1, stream);
  table.group(0).share_again(slot, copy);
}

}  // namespace tq
