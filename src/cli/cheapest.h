// SPDX-License-Identifier: Apache-2.0
//
// `tqkv eval --cheapest`: every way to store the capture that the library has - scalar and trellis codes,
// widths of keys and values, and of calibrations their centres, bands and layers of different widths - each
// measured on all layers, and the one of the fewest bytes whose means over layers keep both limits.
#pragma once

#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "cli/calibrated.h"
#include "cli/capture.h"
#include "cli/evaluate.h"

namespace tq::cli {

struct Way {
  std::string text;
  std::string family;  // the same but for bits
  double bytes = 0;    // of a token and kv head, all-in as eval's; mean over layers, as all that follow
  double kl = 0;
  double error = 0;  // of the attention's output
  double coded_bytes = 0;
  double distortion = 0;  // relative mean squared error of keys and values
};

// Codes at the rate-distortion limit that know nothing of their data: 4^-bits of what they lose at none.
struct Limit {
  double number_bits = 0;            // bytes of a token and kv head for each bit of a number
  double bytes = 0;                  // and beside its codes: exact tokens, and rooms of pages
  double kl = 0, squared_error = 0;  // at no bits
};

struct Ways {
  std::vector<Way> measured;   // by bytes, then KL
  int cheapest = -1;           // place of the one that is asked for; -1: none keeps both limits
  std::optional<Limit> limit;  // from the plain codes of 4 bits, whose losses are in proportion
};

// calibrations: of the capture's layers, in their order; names: of their files. Device, window, sinks, rules,
// seed and limits are those of the options.
Ways compare_ways(Capture& capture, const Options& options,
                  const std::vector<std::shared_ptr<Calibrated>>& calibrations,
                  const std::vector<std::string>& names, const Progress& progress);

void print_ways(std::ostream& out, const Ways& ways, const Options& options);
std::string ways_json(const Ways& ways, const Options& options);  // ends with a newline
// Every way as a point, a line for each family through those that no way of fewer bytes is better than, and
// the limit.
std::string ways_plot(const Ways& ways, const std::string& path);

}  // namespace tq::cli
