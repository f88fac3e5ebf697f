// SPDX-License-Identifier: Apache-2.0
// A file in memory, as the callbacks of tq_io write and read it.
#pragma once
#include <string.h>

#include <vector>

#include "tqkv.h"

namespace tq {

struct ByteStream {
  std::vector<uint8_t> bytes;
  size_t at = 0;  // of the next byte that is read

  tq_io io() {
    tq_io io = {};
    io.struct_size = sizeof io;
    io.user = this;
    io.write = [](void* user, const void* from, size_t count) {
      std::vector<uint8_t>& bytes = static_cast<ByteStream*>(user)->bytes;
      const uint8_t* first = static_cast<const uint8_t*>(from);
      bytes.insert(bytes.end(), first, first + count);
      return int32_t{0};
    };
    io.read = [](void* user, void* to, size_t count) {
      ByteStream& stream = *static_cast<ByteStream*>(user);
      if (count > stream.bytes.size() - stream.at) return int32_t{1};
      memcpy(to, stream.bytes.data() + stream.at, count);
      stream.at += count;
      return int32_t{0};
    };
    return io;
  }
};

}  // namespace tq
