// SPDX-License-Identifier: Apache-2.0
//
// `tqkv info`: what this library is and what it can run, asked from the library itself.
#pragma once

#include <ostream>

namespace tq::cli {

void print_info(std::ostream& out, bool json);

}  // namespace tq::cli
