// SPDX-License-Identifier: Apache-2.0
//
// `tqkv info --models`: what the caches of public models need, layer by layer, in float16 and as codes. The
// models are data (tests/data/models.json, which the build puts into the program); the bytes are the
// library's own answer for a cache of their layers.
#pragma once

#include <ostream>

namespace tq::cli {

void print_models(std::ostream& out, bool json);

}  // namespace tq::cli
