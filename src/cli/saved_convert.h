// SPDX-License-Identifier: Apache-2.0
//
// Saved sequences cut and joined: ranks' files to one of all kv heads, a range of kv heads or layers of a
// file, a file without exact copies. Tiles are copied as they are, never decoded.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/saved.h"

namespace tq::cli {

// Numbers of the whole model, last included; first < 0: all.
struct NumberRange {
  int64_t first = -1, last = -1;
  bool all() const { return first < 0; }
  bool has(int64_t number) const { return all() || (number >= first && number <= last); }
};

struct ConvertOptions {
  NumberRange layers, kv_heads;
  bool exact_copies = true;
};

// Reads and checks the inputs, whose kv heads follow one another in each layer (any order of files), and
// writes what the options leave of them, as tq_sequence_save would. progress(done, of) in bytes. SavedError,
// WriteError; then `output` is as it was.
SavedHeader convert_saved(const std::vector<std::string>& inputs, const std::string& output,
                          const ConvertOptions& options,
                          const std::function<void(uint64_t, uint64_t)>& progress);

}  // namespace tq::cli
