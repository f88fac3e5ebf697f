// SPDX-License-Identifier: Apache-2.0
// Calls of the fuzz target of C API programs that make, change, move and plan sequences.
#pragma once
#include "call_arguments.h"
#include "state_frame.h"

namespace tq {
namespace fuzz {

class CallSequences : protected CallArguments {
 protected:
  tq_status create(const Call& call) {
    tq_sequence id = -7;
    const tq_status status = tq_sequence_create(cache(call, side(call)), bad(call, 7) ? nullptr : &id);
    return born(status, side(call), id, 0);
  }
  tq_status born(tq_status status, int side, tq_sequence id, int64_t length) {
    FUZZ_CHECK((status == TQ_OK) == (id != -7) && id != 0, "%s, id %lld", tq_status_name(status),
               static_cast<long long>(id));
    if (status != TQ_OK) return status;
    digest_.add_value(id);
    world_->live.push_back({side, id, length});
    return status;
  }

  tq_status free_sequence(const Call& call) {
    const LiveSequence* sequence = chosen(call.a);
    const tq_sequence id = id_of(call, sequence);
    const int at = sequence ? sequence->cache : 0;
    const tq_status status = tq_sequence_free(cache(call, at), id, stream(call));
    if (status == TQ_OK) forget(at, id);
    return status;
  }
  void forget(int at, tq_sequence id) {
    auto& live = world_->live;
    const auto found = std::find_if(live.begin(), live.end(), [&](const LiveSequence& each) {
      return each.cache == at && each.id == id;
    });
    FUZZ_CHECK(found != live.end(), "sequence %lld was not alive", static_cast<long long>(id));
    live.erase(found);
  }
  LiveSequence& named(int at, tq_sequence id) {
    for (LiveSequence& each : world_->live)
      if (each.cache == at && each.id == id) return each;
    FUZZ_CHECK(false, "sequence %lld was not alive", static_cast<long long>(id));
    abort();
  }

  tq_status fork(const Call& call) {
    const LiveSequence* sequence = chosen(call.a);
    const tq_sequence source = id_of(call, sequence);
    const int at = sequence ? sequence->cache : 0;
    tq_sequence id = -7;
    const tq_status status =
        tq_sequence_fork(cache(call, at), source, stream(call), bad(call, 7) ? nullptr : &id);
    return born(status, at, id, status == TQ_OK ? named(at, source).length : 0);
  }

  tq_status truncate(const Call& call) {
    const LiveSequence* sequence = chosen(call.a);
    const tq_sequence id = id_of(call, sequence);
    const int at = sequence ? sequence->cache : 0;
    const int64_t length = count(call, sequence ? sequence->length : 0);
    if (call.value % 8 == 5) return tq_sequence_flush(cache(call, at), id, stream(call));
    const tq_status status = tq_sequence_truncate(cache(call, at), id, length, stream(call));
    if (status == TQ_OK) named(at, id).length = length;
    return status;
  }

  tq_status remove(const Call& call) {
    const LiveSequence* sequence = chosen(call.a);
    const tq_sequence id = id_of(call, sequence);
    const int at = sequence ? sequence->cache : 0;
    const int64_t length = sequence ? sequence->length : 0;
    const int64_t first = bad(call, 5) ? odd_number(call)
                                       : static_cast<int64_t>(call.value % static_cast<uint64_t>(length + 1));
    const int64_t removed = count(call, length - (bad(call, 5) ? 0 : first));
    const tq_status status = tq_sequence_remove(cache(call, at), id, first, removed, stream(call));
    if (status == TQ_OK) named(at, id).length -= removed;
    return status;
  }

  tq_status select(const Call& call) {
    const LiveSequence* sequence = chosen(call.a);
    const tq_sequence id = id_of(call, sequence);
    const int at = sequence ? sequence->cache : 0;
    std::vector<int64_t> kept;
    std::minstd_rand random(call.n);
    for (int64_t token = 0; sequence && token < sequence->length; token++)
      if (random() % 256 >= call.b) kept.push_back(token);
    if (bad(call, 3) && !kept.empty()) kept[call.n % kept.size()] = odd_number(call);
    const int64_t number = bad(call, 5) ? -1 : static_cast<int64_t>(kept.size());
    const tq_status status =
        tq_sequence_select(cache(call, at), id, bad(call, 7) ? nullptr : kept.data(), number, stream(call));
    if (status == TQ_OK) named(at, id).length = number;
    return status;
  }

  tq_status copy(const Call& call) {
    const LiveSequence* sequence = chosen(call.a);
    const tq_sequence source = id_of(call, sequence);
    const int at = sequence ? sequence->cache : 0;
    tq_sequence id = -7;
    const tq_status status =
        tq_sequence_copy(cache(call, at), source, bad(call, 4) ? nullptr : world_->caches[side(call)],
                         stream(call), bad(call, 7) ? nullptr : &id);
    return born(status, side(call), id, status == TQ_OK ? named(at, source).length : 0);
  }

  tq_status make_batch(const Call& call) {
    const size_t index = call.a % 3;
    if (world_->batches[index]) return TQ_OK;
    return tq_batch_create(cache(call, index == 2), bad(call, 7) ? nullptr : &world_->batches[index]);
  }
  tq_status end_batch(const Call& call) {
    tq_batch*& batch = world_->batches[call.a % 3];
    if (call.bad >= 128 && batch) return tq_cache_destroy(world_->caches[call.a % 3 == 2]);  // it has a batch
    const tq_status status = tq_batch_destroy(batch);
    batch = nullptr;
    return status;
  }

  tq_status plan(const Call& call) {
    const int at = call.a % 3 == 2;
    const size_t most = std::min<size_t>(1 + call.b % 3, std::max<size_t>(world_->live.size(), 1));
    std::vector<tq_sequence> ids;
    std::vector<int64_t> news, queries;
    for (size_t i = 0; i < most; i++) {
      const LiveSequence* sequence = chosen(call.b / 4 + static_cast<uint32_t>(i));
      if (sequence && sequence->cache != at && !bad(call, 2)) continue;
      ids.push_back(id_of(call, sequence));
      const uint64_t bits = call.value >> (12 * i);
      news.push_back(bad(call, 3) && i == 0 ? odd_number(call)
                                            : static_cast<int64_t>(bits % (bits & 64 ? 48 : 8)));
      queries.push_back(bad(call, 4) ? odd_number(call) : static_cast<int64_t>(bits >> 6 & 15));
    }
    if (bad(call, 5) && !ids.empty()) ids.push_back(ids[0]), news.push_back(1), queries.push_back(1);
    const int32_t number = bad(call, 6) ? -1 : static_cast<int32_t>(ids.size());
    const tq_status status =
        tq_batch_plan(world_->batches[call.a % 3], number, bad(call, 7) ? nullptr : ids.data(), news.data(),
                      call.n & 1 ? queries.data() : nullptr, stream(call));
    for (size_t i = 0; status == TQ_OK && i < ids.size(); i++) named(at, ids[i]).length += news[i];
    return status;
  }

  // Saved, damaged now and then, and loaded by one of the caches.
  tq_status save_and_load(const Call& call) {
    const LiveSequence* sequence = chosen(call.a);
    const tq_sequence source = id_of(call, sequence);
    const int at = sequence ? sequence->cache : 0;
    ByteStream bytes;
    tq_io io = bytes.io();
    if (bad(call, 3)) io.write = nullptr;
    if (bad(call, 4)) io.struct_size = static_cast<uint32_t>(call.value % 12);
    tq_status status = tq_sequence_save(cache(call, at), source, bad(call, 5) ? nullptr : &io, stream(call));
    if (status != TQ_OK) return status;
    std::vector<uint8_t> file = bytes.bytes;
    if (bad(call, 6)) file[call.value % file.size()] ^= static_cast<uint8_t>(1 + call.n % 255);
    if (call.bad == 159) file.resize(call.value % file.size());
    bytes = reading(file);
    io = bytes.io();
    tq_sequence id = -7;
    status = tq_sequence_load(world_->caches[side(call)], &io, nullptr, bad(call, 7) ? nullptr : &id);
    const bool damaged = bad(call, 6) || call.bad == 159;
    FUZZ_CHECK(status != TQ_OK || (bytes.at == file.size() && !damaged), "it was loaded as it is not");
    return born(status, side(call), id, status == TQ_OK ? named(at, source).length : 0);
  }

  // A part of a sequence to the end of another one, by way of memory.
  tq_status export_and_import(const Call& call) {
    const LiveSequence *from = chosen(call.a), *to = chosen(call.b & 127);
    if (!from || !to) return TQ_OK;
    tq_state state = {};
    state.struct_size = bad(call, 6) ? static_cast<uint32_t>(call.value % 12) : sizeof state;
    state.first_token = bad(call, 5) ? odd_number(call) : from->length > to->length ? to->length : 0;
    state.num_tokens = bad(call, 3) ? odd_number(call) : call.n % 64;
    if (call.value & 1) state.first_layer = static_cast<int32_t>(call.value >> 1 & 3), state.num_layers = 1;
    if (call.value & 8)
      state.first_kv_head = static_cast<int32_t>(call.value >> 4 & 1), state.num_kv_heads = 1;
    tq_status status =
        tq_sequence_describe(cache(call, from->cache), id_of(call, from), bad(call, 7) ? nullptr : &state);
    if (status != TQ_OK) return status;
    FUZZ_CHECK(state.bytes >= 0 && state.bytes < 1 << 24, "%lld bytes", static_cast<long long>(state.bytes));
    const Buffer memory(static_cast<size_t>(state.bytes));
    status = tq_sequence_export(world_->caches[from->cache], from->id, &state, memory.data.get(),
                                memory.size - (bad(call, 4) && memory.size > 0), nullptr);
    if (status != TQ_OK) return status;
    status = tq_sequence_import(world_->caches[to->cache], to->id, &state, memory.data.get(), memory.size,
                                stream(call));
    if (status != TQ_OK) return status;
    digest_.add(memory);
    LiveSequence& grown = named(to->cache, to->id);
    grown.length = std::max(grown.length, state.first_token + state.num_tokens);
    return status;
  }
};

}  // namespace fuzz
}  // namespace tq
