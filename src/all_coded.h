// SPDX-License-Identifier: Apache-2.0
// Where tokens are stored once, those of a window have no codes. What moves, saves or takes out tokens by
// codes has the window coded for its time: AllCoded makes the codes, and gives up at its end what it made.
// Without Geometry::store_once nothing happens.
//
// Codes that come from elsewhere may be of another scale rule or search (those are no part of what makes
// caches exchangeable), so only codes that were made here from copies are ever given up and made again.
#pragma once
#include "cache.h"

namespace tq {

constexpr PageCopy kNoCopy = {-1, -1};

class Cache::AllCoded {
 public:
  // CAPACITY, nothing changed, if the pool has no room for the codes.
  AllCoded(Cache& cache, int32_t slot, void* stream)
      : cache_(cache), slot_(slot), stream_(stream), coded_(cache.arrays_.table.coded(slot)) {
    cache.code_all(slot, &copy_, stream);
  }
  ~AllCoded() { cache_.give_up_codes(slot_, coded_, copy_, stream_); }
  AllCoded(const AllCoded&) = delete;
  AllCoded& operator=(const AllCoded&) = delete;

  // The codes stay.
  void keep() {
    coded_ = INT64_MAX;
    copy_ = kNoCopy;
  }
  // The sequence loses tokens: of those that stay the codes are given up as far as they are in the window.
  void moved(const TokenMap& tokens) {
    coded_ = tokens.kept_before(coded_);
    copy_ = kNoCopy;
  }

 private:
  Cache& cache_;
  int32_t slot_;
  void* stream_;
  int64_t coded_;
  PageCopy copy_ = kNoCopy;  // of the page that got codes, if a fork shares it
};

}  // namespace tq
