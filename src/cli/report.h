// SPDX-License-Identifier: Apache-2.0
//
// An evaluation as text for people (120 columns) and as one JSON document for machines. Same figures; the
// JSON holds all of them.
#pragma once

#include <ostream>
#include <string>

#include "cli/evaluate.h"

namespace tq::cli {

void print_report(std::ostream& out, const Evaluation& evaluation);
std::string report_json(const Evaluation& evaluation);  // ends with a newline

const char* rotation_name(int32_t rotation);
const char* family_name(int32_t family);
const char* scale_rule_name(int32_t rule);

// printf into a string
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

// 1234567 -> "1.23M"
std::string short_count(double value);

}  // namespace tq::cli
