// SPDX-License-Identifier: Apache-2.0
// What a saved sequence says of itself (FORMAT.md section 6.2): a fixed part, and a record of each layer. The
// identity of a part is the hash of the records of its layers and kv heads, so whoever can read the text can
// compute it.
#pragma once
#include <vector>

#include "state_part.h"
#include "state_stream.h"

namespace tq {

// XXH64 of format version, first layer and layer records of a part.
uint64_t part_identity(const Identity& identity, const StatePart& part);

struct SavedHeader {
  StatePart part;  // of the reader's cache, all kv heads of its own
  uint64_t flags;
  // Of the layers: the kv heads that were saved, in the model's numbers.
  std::vector<int32_t> first_heads, num_heads;
  int64_t payload_bytes;
};

void write_header(StateWriter& out, const Identity& identity, const StatePart& part, const tq_state& state);
// CORRUPT_DATA: not what write_header writes; INCOMPATIBLE, naming the field: not of this cache; CAPACITY:
// more than max_tokens tokens.
SavedHeader read_header(StateReader& in, const Identity& identity, int64_t max_tokens);

}  // namespace tq
