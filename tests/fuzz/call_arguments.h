// SPDX-License-Identifier: Apache-2.0
// Arguments of the fuzz target of C API programs, right and wrong ones. Pointers always have the room that
// the call may use: what no library can notice is left out.
#pragma once
#include "call_world.h"

namespace tq {
namespace fuzz {

// Numbers of tokens, positions and strides that no call can mean, beside small ones.
inline int64_t odd_number(const Call& call) {
  static const int64_t kOdd[] = {-1,        0,         1,         31,        32,      33,
                                 INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, 1 << 20, -64};
  return kOdd[call.value % (sizeof kOdd / sizeof *kOdd)];
}

class CallArguments {
 protected:
  bool bad(const Call& call, int which) const { return call.bad >= 160 && call.bad % 8 == which; }
  int side(const Call& call) const { return call.b >> 7; }
  tq_cache* cache(const Call& call, int side) const { return bad(call, 0) ? nullptr : world_->caches[side]; }
  void* stream(const Call& call) { return bad(call, 1) ? this : nullptr; }
  LiveSequence* chosen(uint32_t choice) const {
    return world_->live.empty() ? nullptr : &world_->live[choice % world_->live.size()];
  }
  tq_sequence id_of(const Call& call, const LiveSequence* sequence) const {
    if (bad(call, 2)) return static_cast<tq_sequence>(call.value);
    return sequence ? sequence->id : static_cast<tq_sequence>(call.value % 8);
  }
  int64_t count(const Call& call, int64_t most) const {
    if (bad(call, 3)) return odd_number(call);
    return most <= 0 ? 0 : static_cast<int64_t>(call.n % static_cast<uint64_t>(most + 1));
  }
  int32_t layer_index(const Call& call) const {
    return bad(call, 4) ? static_cast<int32_t>(odd_number(call)) : call.a % 4;
  }
  // Room and strides of a tensor [tokens][heads][dim].
  struct Room {
    int64_t token = 0, head = 0;
    size_t elements = 0;
  };
  Room room(const Call& call, int64_t tokens, int64_t heads, int64_t dim) const {
    Room room;
    if (bad(call, 5)) {  // refused whatever the tensor
      static const int64_t kRefused[] = {-1, 1, 31, (int64_t{1} << 48) + 1, INT64_MAX, INT64_MIN};
      (call.n & 1 ? room.token : room.head) = kRefused[call.value % 6];
    } else if (call.bad % 4 == 1) {
      room.head = dim + 3, room.token = heads * room.head + 5;
    } else if (call.bad % 4 == 2) {
      room.token = dim + 1, room.head = std::max<int64_t>(tokens, 1) * room.token;
    }
    const int64_t token = std::min<int64_t>(std::max<int64_t>(room.token, heads * dim), 1 << 20);
    const int64_t head = std::min<int64_t>(std::max<int64_t>(room.head, dim), 1 << 20);
    if (tokens > 0)
      room.elements = static_cast<size_t>((tokens - 1) * (room.token > 0 && room.token < heads * dim
                                                              ? std::max<int64_t>(room.token, dim)
                                                              : token) +
                                          (heads - 1) * head + dim);
    return room;
  }
  tq_tensor_layout layout(const Call& call, const Room& key, const Room& value) const {
    tq_tensor_layout layout = {sizeof layout, 0, key.token, key.head, value.token, value.head};
    if (bad(call, 6)) layout.struct_size = static_cast<uint32_t>(call.value % 12);
    if (bad(call, 7)) layout.reserved = 1;
    return layout;
  }

  CallWorld* world_ = nullptr;
  Digest digest_;
};

}  // namespace fuzz
}  // namespace tq
