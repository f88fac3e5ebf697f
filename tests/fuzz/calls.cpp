// SPDX-License-Identifier: Apache-2.0
// Programs of C API calls, many of them illegal: NULL, dead sequences, other caches' batches, counts and
// strides of any value, structs of wrong sizes. Pointers always have the room that the call may use: what no
// library can notice is left out.
//
// Every program runs twice, the second time without the calls that failed. Since a failed call changes
// nothing observable, both runs must give the same ids, statuses and output bytes.
#include "call_sequences.h"

namespace {

using namespace tq::fuzz;

class Program : protected CallSequences {
 public:
  Program(const uint8_t* data, size_t size) : input_(data), size_(size) {
    for (size_t at = kCallHead; at + kCallBytes <= size && calls_.size() < kMostCalls; at += kCallBytes)
      calls_.push_back({data[at], data[at + 1], data[at + 2], data[at + 3],
                        static_cast<uint32_t>(number_at(data, size, at + 4, 4)),
                        number_at(data, size, at + 8, 8)});
  }

  void run() {
    std::vector<tq_status> first, second;
    const uint64_t whole = run_once({}, &first);
    if (std::all_of(first.begin(), first.end(), [](tq_status status) { return status == TQ_OK; })) return;
    const uint64_t kept = run_once(first, &second);
    FUZZ_CHECK(whole == kept, "failed calls have changed what the others do");
  }

 private:
  // Digest of what the calls gave; those that failed before are left out.
  uint64_t run_once(const std::vector<tq_status>& before, std::vector<tq_status>* statuses) {
    uint8_t head[kCallHead] = {};
    memcpy(head, input_, std::min(size_, kCallHead));
    digest_ = Digest();
    CallWorld world(head);
    world_ = &world;
    for (size_t i = 0; i < calls_.size(); i++) {
      if (i < before.size() && before[i] != TQ_OK) {
        statuses->push_back(before[i]);
        continue;
      }
      const tq_status status = do_call(calls_[i]);
      world.after(status);
      FUZZ_CHECK(before.empty() || status == TQ_OK, "call %zu now fails: %s", i, tq_last_error());
      statuses->push_back(status);
    }
    for (const LiveSequence& each : world.live)
      for (int32_t layer = 0; layer < world.own[each.cache].num_layers; layer++)
        read(each, layer, 0, each.length, false);
    return digest_.hash;
  }

  // ---- calls ----

  tq_status do_call(const Call& call) {
    if (call.op >= 240) return call.op % 2 ? save_and_load(call) : export_and_import(call);
    switch (call.op % 24) {
      case 0:
      case 1: return create(call);
      case 2: return free_sequence(call);
      case 3: return fork(call);
      case 4: return truncate(call);
      case 5: return remove(call);
      case 6: return select(call);
      case 7: return copy(call);
      case 8: return make_batch(call);
      case 9: return end_batch(call);
      case 10:
      case 11:
      case 12: return plan(call);
      case 13:
      case 14:
      case 15: return append(call);
      case 16:
      case 17: return attend(call);
      case 18: return read_some(call);
      case 19: return reserve(call);
      case 20: return centres(call);
      case 21: return merge(call);
      case 22: return ask(call);
      default: return ask_library(call);
    }
  }

  // Rows of a batch's plan, none without one.
  void rows(const tq_batch* batch, int64_t* news, int64_t* queries) {
    *news = *queries = 0;
    if (batch) FUZZ_CHECK(tq_batch_rows(batch, news, queries, nullptr) == TQ_OK, "%s", tq_last_error());
  }

  tq_status append(const Call& call) {
    const tq_batch* batch = world_->batches[call.b % 3];
    const int at = call.b % 3 == 2;
    const int32_t index = layer_index(call);
    const tq_layer_config& layer = world_->layer(at, index);
    const int32_t dtype = world_->own[at].io_dtype;
    int64_t news, queries;
    rows(batch, &news, &queries);
    const Room key = room(call, news, layer.num_kv_heads, layer.head_dim),
               value = room(call, news, layer.num_kv_heads, layer.value_dim);
    const bool wild = call.n % 8 == 7;
    const Buffer k = numbers(key.elements, dtype, call.value, wild),
                 v = numbers(value.elements, dtype, call.value + 1, wild);
    const tq_tensor_layout strides = layout(call, key, value);
    const bool latent = layer.layer_kind == TQ_LATENT && !bad(call, 7);
    return tq_cache_append(cache(call, bad(call, 2) ? !at : at), index, batch,
                           bad(call, 3) ? nullptr : k.data.get() + (bad(call, 1) ? 1 : 0),
                           latent ? nullptr : v.data.get(), &strides, bad(call, 1) ? nullptr : stream(call));
  }

  // Masks and other arrays of an attend, with exactly the room that its rows need.
  struct Masks {
    Buffer begin, end, tree, slopes, sinks;
  };
  Masks masks(const Call& call, size_t queries, size_t heads) {
    Masks masks = {Buffer(queries * 4), Buffer(queries * 4), Buffer(queries * 16),
                   numbers(heads, TQ_F32, call.n, false), numbers(heads, TQ_F32, call.n + 1, false)};
    std::minstd_rand random(call.n);
    for (size_t i = 0; i < queries; i++) {
      masks.begin.as<int32_t>()[i] = static_cast<int32_t>(random() % 80) - 8;
      masks.end.as<int32_t>()[i] = static_cast<int32_t>(random() % 120) - 8;
    }
    for (size_t i = 0; i < queries * 16; i++) masks.tree.data[i] = static_cast<uint8_t>(random());
    return masks;
  }

  tq_attend_params params(const Call& call, const Masks& masks) {
    tq_attend_params p;
    tq_attend_params_init(&p);
    const uint64_t bits = call.value >> 16;
    if (bits & 1) p.out_dtype = 1 + static_cast<int32_t>(bits >> 1 & 3) % 3;
    if (bits & 8) p.softmax_scale = ldexpf(1, static_cast<int>(bits >> 4 & 255) - 140);
    if (bits & 4096) p.logit_softcap = ldexpf(1, static_cast<int>(bits >> 13 & 63) - 30);
    if (bits & (1 << 20)) p.sliding_window = static_cast<int64_t>(bits >> 21 & 63);
    if (bits & (1 << 27)) p.sink_logits = masks.sinks.as<float>();
    if (bits & (1 << 28)) p.alibi_slopes = masks.slopes.as<float>();
    if (bits & (1 << 29))
      p.visible_begin = masks.begin.as<int32_t>(), p.visible_end = masks.end.as<int32_t>();
    if (bits & (1 << 30))
      p.tree_mask = masks.tree.as<uint64_t>(), p.tree_words = 1 + static_cast<int32_t>(bits >> 31 & 1);
    p.history_only = static_cast<int32_t>(bits >> 32 & 1);
    switch (call.bad >= 160 ? call.n % 9 : 9) {
      case 0: p.struct_size = static_cast<uint32_t>(call.value % 12); break;
      case 1: p.out_dtype = static_cast<int32_t>(odd_number(call)) | 4; break;
      case 2: p.softmax_scale = call.value & 1 ? NAN : 1e38f; break;
      case 3: p.logit_softcap = call.value & 1 ? -1 : INFINITY; break;
      case 4: p.sliding_window = odd_number(call); break;
      case 5: p.history_only = static_cast<int32_t>(odd_number(call)); break;
      case 6: p.tree_words = static_cast<int32_t>(odd_number(call)) | 4; break;
      case 7: p.visible_begin = nullptr; break;
      default: break;
    }
    return p;
  }

  tq_status attend(const Call& call) {
    const tq_batch* batch = world_->batches[call.b % 3];
    const int at = call.b % 3 == 2;
    const int32_t index = layer_index(call);
    const tq_layer_config& layer = world_->layer(at, index);
    int64_t news, queries;
    rows(batch, &news, &queries);
    const Masks arrays = masks(call, static_cast<size_t>(queries), static_cast<size_t>(layer.num_q_heads));
    tq_attend_params p = params(call, arrays);
    const Room k_room = room(call, news, layer.num_kv_heads, layer.head_dim),
               v_room = room(call, news, layer.num_kv_heads, layer.value_dim);
    const int32_t io = world_->own[at].io_dtype;
    const Buffer k = numbers(k_room.elements, io, call.value, call.n % 8 == 7),
                 v = numbers(v_room.elements, io, call.value + 1, call.n % 8 == 7);
    const tq_tensor_layout chunk = layout(call, k_room, v_room);
    if (call.value >> 49 & 1) {  // its own rows are dense, whatever the strides of k and v
      p.chunk_k = k.data.get(), p.chunk_v = v.data.get(), p.chunk_layout = &chunk;
      if (call.bad >= 160 && call.n % 16 == 9) p.chunk_v = nullptr;
    }
    const Room in = room(call, queries, layer.num_q_heads, layer.head_dim),
               to = room(call, queries, layer.num_q_heads, layer.value_dim);
    p.q_token_stride = in.token, p.q_head_stride = in.head;
    p.out_token_stride = to.token, p.out_head_stride = to.head;
    const int32_t type = p.out_dtype >= TQ_F32 && p.out_dtype <= TQ_BF16 ? p.out_dtype : io;
    const Buffer q = numbers(in.elements, io, call.value, false),
                 out(to.elements * static_cast<size_t>(element_bytes(type))),
                 lse(static_cast<size_t>(queries * layer.num_q_heads) * 4);
    size_t needed = 0;
    FUZZ_CHECK(tq_attend_workspace_bytes(world_->caches[at], &needed) == TQ_OK, "%s", tq_last_error());
    const size_t given = call.bad % 16 == 3 ? needed - (call.n & 1) : 0;
    const Buffer workspace(given ? needed + 256 : 0);
    void* aligned =
        given ? reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace.data.get()) + 255) / 256 * 256)
              : nullptr;
    const tq_status status = tq_cache_attend(
        cache(call, bad(call, 2) ? !at : at), index, batch, bad(call, 3) ? nullptr : q.data.get(),
        out.data.get(), lse.as<float>(),
        call.n % 5 == 4 && call.bad < 128 && call.bad % 4 == 0 && !(call.value >> 16 & 1) ? nullptr : &p,
        aligned, given, stream(call));
    if (status != TQ_OK) {
      FUZZ_CHECK(out.untouched() && lse.untouched(), "a failed attend has written");
      return status;
    }
    check_rows(out, lse, to, queries, layer, type);
    digest_.add(out), digest_.add(lse);
    return status;
  }
  // Finite queries give finite rows.
  void check_rows(const Buffer& out, const Buffer& lse, const Room& to, int64_t queries,
                  const tq_layer_config& layer, int32_t type) {
    const int64_t head_stride = to.head ? to.head : layer.value_dim;
    const int64_t token_stride = to.token ? to.token : layer.num_q_heads * layer.value_dim;
    for (int64_t row = 0; row < queries * layer.num_q_heads; row++) {
      const int64_t first = row / layer.num_q_heads * token_stride + row % layer.num_q_heads * head_stride;
      for (int64_t i = 0; i < layer.value_dim; i++)
        FUZZ_CHECK(isfinite(number_of(out.data.get(), static_cast<size_t>(first + i), type)),
                   "row %lld, element %lld", static_cast<long long>(row), static_cast<long long>(i));
      FUZZ_CHECK(!isnan(lse.as<float>()[row]), "lse of row %lld", static_cast<long long>(row));
    }
  }

  tq_status read_some(const Call& call) {
    const LiveSequence* sequence = chosen(call.b);
    if (!sequence) return TQ_OK;
    const int64_t first =
        bad(call, 5) ? odd_number(call)
                     : static_cast<int64_t>(call.value % static_cast<uint64_t>(sequence->length + 1));
    LiveSequence asked = *sequence;
    asked.id = id_of(call, sequence);
    if (bad(call, 3)) {  // a count outside of the sequence needs no room
      const int64_t number = odd_number(call);
      if (number <= sequence->length && number >= 0) return TQ_OK;
      return tq_cache_read(world_->caches[asked.cache], layer_index(call), asked.id, first, number, nullptr,
                           nullptr, nullptr, nullptr);
    }
    return read(asked, layer_index(call), first, count(call, bad(call, 5) ? 1 : sequence->length - first),
                true);
  }
  tq_status read(const LiveSequence& sequence, int32_t index, int64_t first, int64_t tokens, bool both) {
    const tq_layer_config& layer = world_->layer(sequence.cache, index);
    const size_t bytes = static_cast<size_t>(element_bytes(world_->own[sequence.cache].io_dtype));
    const Buffer k(static_cast<size_t>(tokens * layer.num_kv_heads * layer.head_dim) * bytes),
        v(static_cast<size_t>(tokens * layer.num_kv_heads * layer.value_dim) * bytes);
    const tq_status status =
        tq_cache_read(world_->caches[sequence.cache], index, sequence.id, first, tokens, k.data.get(),
                      both && tokens % 7 == 0 ? nullptr : v.data.get(), nullptr, nullptr);
    FUZZ_CHECK(status == TQ_OK || (k.untouched() && v.untouched()), "a failed read has written");
    if (status == TQ_OK || !both) digest_.add_value(status), digest_.add(k), digest_.add(v);
    return status;
  }

  tq_status reserve(const Call& call) {
    const int at = side(call);
    const int64_t now = world_->own[at].max_tokens;
    return tq_cache_reserve(cache(call, at), bad(call, 3) ? odd_number(call) : now + call.n % 80,
                            stream(call));
  }

  // Neighbours change places, some coordinates are stretched; now and then a number is none that it takes.
  tq_status key_matrix(const Call& call) {
    const int at = side(call);
    const int32_t index = layer_index(call);
    const tq_layer_config& layer = world_->layer(at, index);
    const size_t dim = static_cast<size_t>(layer.head_dim),
                 rows = static_cast<size_t>(layer.num_kv_heads) * dim;
    const Buffer matrix(rows * dim * 4, 0);
    for (size_t row = 0; row < rows; row++)
      matrix.as<float>()[row * dim + (row % dim ^ (call.value & 1))] = ldexpf(
          call.value >> row % 16 & 2 ? -1.0f : 1.0f, static_cast<int>(row % 3 * (call.value >> 20 & 7)) - 8);
    if (call.n % 8 == 7)
      matrix.as<float>()[call.value % (rows * dim)] = call.value & 1 ? NAN : static_cast<float>(call.value);
    return tq_cache_set_key_matrix(cache(call, at), index, bad(call, 7) ? nullptr : matrix.as<float>());
  }

  tq_status centres(const Call& call) {
    if (call.n & 4) return key_matrix(call);
    const int at = side(call);
    const int32_t index = layer_index(call);
    const tq_layer_config& layer = world_->layer(at, index);
    const Buffer key = numbers(static_cast<size_t>(layer.num_kv_heads * layer.head_dim), TQ_F32, call.value,
                               call.n % 8 == 7),
                 value = numbers(static_cast<size_t>(layer.num_kv_heads * layer.value_dim), TQ_F32,
                                 call.value + 1, false);
    return tq_cache_set_centres(cache(call, at), index, call.n & 1 ? key.as<float>() : nullptr,
                                call.n & 2 ? value.as<float>() : nullptr);
  }

  tq_status merge(const Call& call) {
    const int32_t states = bad(call, 3) ? static_cast<int32_t>(odd_number(call)) : 1 + call.a % 3;
    const int64_t most = call.b % 5;
    const int32_t dim = bad(call, 4) ? static_cast<int32_t>(odd_number(call)) : 1 + call.a % 40;
    const int32_t type =
        bad(call, 5) ? static_cast<int32_t>(odd_number(call)) : 1 + static_cast<int32_t>(call.n % 3);
    const size_t room = static_cast<size_t>(most) * 64 * 4;
    std::vector<Buffer> outs, lses;
    const void* out_pointers[40];
    const float* lse_pointers[40];
    for (int i = 0; i < 40; i++) {
      outs.push_back(numbers(room / 4, TQ_F32, call.value + static_cast<uint64_t>(i), call.n & 64));
      lses.push_back(
          numbers(static_cast<size_t>(most), TQ_F32, call.value - static_cast<uint64_t>(i), call.n & 64));
      out_pointers[i] = outs.back().data.get(), lse_pointers[i] = lses.back().as<float>();
    }
    if (bad(call, 6)) out_pointers[0] = nullptr;
    if (states > 40 || dim > 64) return TQ_OK;  // more than there is here
    const Buffer out(room), lse(static_cast<size_t>(most) * 4);
    const tq_status status = tq_merge_states(
        states, bad(call, 7) ? nullptr : out_pointers, lse_pointers, bad(call, 2) ? -1 : most, dim, type,
        out.data.get(), call.n & 32 ? lse.as<float>() : nullptr,
        bad(call, 0) ? static_cast<int32_t>(call.value) : 1, call.bad == 255 ? 1 : 0, stream(call));
    FUZZ_CHECK(status == TQ_OK || (out.untouched() && lse.untouched()), "a failed merge has written");
    if (status == TQ_OK) digest_.add(out), digest_.add(lse);
    return status;
  }

  tq_status ask(const Call& call) {
    const int at = side(call);
    const LiveSequence* sequence = chosen(call.a);
    uint64_t number = 0;
    int64_t length = 0;
    tq_status status;
    switch (call.n % 6) {
      case 0: status = tq_cache_fingerprint(cache(call, at), bad(call, 7) ? nullptr : &number); break;
      case 1: status = tq_cache_check(cache(call, at), stream(call), bad(call, 7) ? nullptr : &number); break;
      case 2:
        status = tq_sequence_flags(cache(call, sequence ? sequence->cache : at), id_of(call, sequence),
                                   bad(call, 7) ? nullptr : &number);
        break;
      case 3:
        status = tq_sequence_length(cache(call, sequence ? sequence->cache : at), id_of(call, sequence),
                                    bad(call, 7) ? nullptr : &length);
        break;
      case 4: {
        tq_cache_config config = {};
        config.struct_size = bad(call, 6) ? static_cast<uint32_t>(call.value % 12) : sizeof config;
        return tq_cache_get_config(cache(call, at), bad(call, 7) ? nullptr : &config);
      }
      default: {
        tq_cache_memory memory = {};
        memory.struct_size = bad(call, 6) ? static_cast<uint32_t>(call.value % 12) : sizeof memory;
        return tq_cache_get_memory(cache(call, at), bad(call, 7) ? nullptr : &memory);
      }
    }
    if (status == TQ_OK) digest_.add_value(number), digest_.add_value(length);
    return status;
  }

  tq_status ask_library(const Call& call) {
    const int32_t type = bad(call, 3) ? static_cast<int32_t>(odd_number(call)) : 1 + call.a % 2;
    switch (call.n % 4) {
      case 0: {
        int32_t number = -7;
        return tq_device_count(type, bad(call, 7) ? nullptr : &number);
      }
      case 1: {
        tq_device_info info = {};
        info.struct_size = bad(call, 6) ? static_cast<uint32_t>(call.value % 12) : sizeof info;
        return tq_device_get_info(type, bad(call, 4) ? static_cast<int32_t>(odd_number(call)) : 0,
                                  bad(call, 7) ? nullptr : &info);
      }
      case 2: {
        const Buffer text(call.value % 64);
        size_t needed = 0;
        return tq_last_error_copy(bad(call, 7) ? nullptr : text.as<char>(), text.size, &needed);
      }
      default:
        FUZZ_CHECK(tq_status_name(static_cast<tq_status>(call.value))[0] == 'T', "no name");
        tq_struct_size(static_cast<int32_t>(call.value));
        return TQ_OK;
    }
  }

  const uint8_t* input_;
  size_t size_;
  std::vector<Call> calls_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Program(data, size).run();
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return mutate_records<kCallHead, kCallBytes>(data, size, max_size, seed);
}
