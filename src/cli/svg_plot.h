// SPDX-License-Identifier: Apache-2.0
//
// An evaluation as an SVG: attention-output error and attention KL (log scale) against stored bytes per token
// and kv head, a line for each layer and a heavy one for the mean. Written by hand: two panels need no
// plotting library.
#pragma once

#include <string>

#include "cli/evaluate.h"

namespace tq::cli {

std::string svg_plot(const Evaluation& evaluation);

}  // namespace tq::cli
