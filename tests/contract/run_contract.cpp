// SPDX-License-Identifier: Apache-2.0
// Runs cases.json (schema: README.md) against the C API on the CPU: one "ok - case" or "not ok - case: why"
// line each, exit status 1 if one failed.
//
// Usage: run_contract cases.json [case...]
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks.h"
#include "paged_steps.h"
#include "state_steps.h"

namespace {

using contract::fail;
using contract::fill_with_nan;
using contract::Json;
using contract::Tensor;
using contract::Tensors;

// One case: the things that its steps name, and a function a step.
class Runner : contract::Checks {
 public:
  explicit Runner(const Tensors& tensors) : Checks(tensors), paged_(tensors), state_(tensors) {}
  ~Runner() { destroy_all(); }

  void run(const Json& test) {
    int number = 0;
    for (const Json& step : test.at("steps")) {
      number++;
      try {
        run_step(step);
      } catch (const std::exception& error) {
        fail("step " + std::to_string(number) + " (" + step.at("op").get<std::string>() +
             "): " + error.what());
      }
    }
    if (const tq_status status = destroy_all())
      fail("destroying gave " + std::string(tq_status_name(status)) + ": " + tq_last_error());
  }

 private:
  struct Batch {
    tq_batch* handle = nullptr;
    int64_t query_tokens = 1;  // rows of the plan in force; 1 without one
  };
  struct Cache {
    tq_cache* handle = nullptr;
    tq_cache_config config;
    std::map<std::string, tq_sequence> sequences;
    std::map<std::string, Batch> batches;
  };

  tq_status destroy_all() {
    tq_status worst = TQ_OK;
    for (auto& [name, cache] : caches_) {
      for (auto& [batch_name, batch] : cache.batches)
        if (const tq_status status = tq_batch_destroy(batch.handle)) worst = status;
      if (const tq_status status = tq_cache_destroy(cache.handle)) worst = status;
    }
    caches_.clear();
    if (const tq_status status = paged_.destroy()) worst = status;
    return worst;
  }

  Cache& cache(const Json& step) {
    const auto found = caches_.find(step.value("cache", "main"));
    if (found == caches_.end()) fail("no such cache");
    return found->second;
  }
  Batch& batch(const Json& step) {
    Cache& owner = cache(step);
    Batch& result = owner.batches[step.at("batch").get<std::string>()];
    if (!result.handle && tq_batch_create(owner.handle, &result.handle))
      fail(std::string("tq_batch_create: ") + tq_last_error());
    return result;
  }
  tq_sequence sequence(const Json& step, const char* field) {
    return cache(step).sequences.at(step.at(field).get<std::string>());
  }
  // Of a layer that there is not: the first one's.
  tq_layer_config shape_of(const Json& step) {
    const tq_cache_config& config = cache(step).config;
    const int32_t layer = step.at("layer");
    return config.layers[layer >= 0 && layer < config.num_layers ? layer : 0];
  }
  void run_step(const Json& step) {
    const std::string op = step.at("op");
    if (op == "create") return create(step);
    if (op == "config_bytes") return config_bytes(step);
    if (op == "memory") return memory(step);
    if (op == "reserve") {
      expected(step, tq_cache_reserve(cache(step).handle, step.at("max_tokens"), nullptr));
      return;
    }
    if (op == "fingerprint") return fingerprint(step);
    if (paged_.knows(op)) return paged_.run(step, op);
    if (state_.knows(op)) return state_step(step, op);
    if (op == "plan") return plan(step);
    if (op == "append") return append(step);
    if (op == "attend") return attend(step);
    if (op == "read") return read(step);
    if (op == "merge") return merge(step);
    if (op.compare(0, 9, "sequence_") == 0) return sequence_step(step, op);
    tq_cache* handle = cache(step).handle;
    if (op == "check") {
      uint64_t flags = ~uint64_t{0};
      if (expected(step, tq_cache_check(handle, nullptr, &flags))) expect_equal(step, flags);
    } else if (op == "set_centres") {
      expected(step, tq_cache_set_centres(handle, step.at("layer"),
                                          static_cast<const float*>(input(step, "key_centre")),
                                          static_cast<const float*>(input(step, "value_centre"))));
    } else {
      fail("unknown op");
    }
  }

  void create(const Json& step) {
    const contract::Config config(step.at("config"));
    char text[2048] = "";
    const tq_status checked = tq_cache_config_check(&config.c, text, sizeof text);
    expected(step, checked, text);
    tq_cache* handle = nullptr;
    if (!expected(step, tq_cache_create(&config.c, nullptr, &handle))) return;
    Cache& owner = caches_[step.value("cache", "main")];
    owner.handle = handle;
    memset(&owner.config, 0, sizeof owner.config);
    owner.config.struct_size = sizeof owner.config;
    if (tq_cache_get_config(handle, &owner.config)) fail("tq_cache_get_config");
  }

  void config_bytes(const Json& step) {
    const contract::Config config(step.at("config"));
    tq_cache_bytes bytes = {};
    bytes.struct_size = sizeof bytes;
    if (!expected(step, tq_cache_config_bytes(&config.c, &bytes))) return;
    contract::expect_fields(step.at("expect"), {{"token_bytes", bytes.token_bytes},
                                                {"fp16_token_bytes", bytes.fp16_token_bytes}});
  }

  void memory(const Json& step) {
    tq_cache_memory m = {};
    m.struct_size = sizeof m;
    if (!expected(step, tq_cache_get_memory(cache(step).handle, &m))) return;
    Json rest = step.at("expect");
    if (rest.contains("compression") &&
        !(fabs(m.compression / rest["compression"].get<double>() - 1) <= 1e-12))
      fail("compression differs");
    rest.erase("compression");
    contract::expect_fields(rest, {{"num_sequences", m.num_sequences},
                                   {"tokens", m.tokens},
                                   {"pages_used", m.pages_used},
                                   {"stored_bytes_used", m.stored_bytes_used},
                                   {"raw_bytes_used", m.raw_bytes_used}});
  }

  void fingerprint(const Json& step) {
    uint64_t value = 0;
    if (!expected(step, step.contains("codec") ? tq_codec_fingerprint(paged_.codec(step), &value)
                                               : tq_cache_fingerprint(cache(step).handle, &value)))
      return;
    if (step.contains("save")) fingerprints_[step["save"]] = value;
    if (step.contains("equals") && value != fingerprints_.at(step["equals"]))
      fail("differs from " + step["equals"].dump());
    if (step.contains("differs") && value == fingerprints_.at(step["differs"]))
      fail("equals " + step["differs"].dump());
  }

  void sequence_step(const Json& step, const std::string& op) {
    Cache& owner = cache(step);
    const std::string name = step.at("sequence");
    tq_sequence id = 0;
    if (op == "sequence_create") {
      if (expected(step, tq_sequence_create(owner.handle, &id))) owner.sequences[name] = id;
    } else if (op == "sequence_fork") {
      if (expected(step, tq_sequence_fork(owner.handle, sequence(step, "source"), nullptr, &id)))
        owner.sequences[name] = id;
    } else if (op == "sequence_copy") {
      Cache& target = caches_.at(step.at("target"));
      if (expected(step,
                   tq_sequence_copy(owner.handle, sequence(step, "source"), target.handle, nullptr, &id)))
        target.sequences[name] = id;
    } else if (op == "sequence_truncate") {
      expected(step,
               tq_sequence_truncate(owner.handle, sequence(step, "sequence"), step.at("length"), nullptr));
    } else if (op == "sequence_flush") {
      expected(step, tq_sequence_flush(owner.handle, sequence(step, "sequence"), nullptr));
    } else if (op == "sequence_remove") {
      expected(step, tq_sequence_remove(owner.handle, sequence(step, "sequence"), step.at("first"),
                                        step.at("count"), nullptr));
    } else if (op == "sequence_select") {
      const auto positions = step.at("positions").get<std::vector<int64_t>>();
      expected(step, tq_sequence_select(owner.handle, sequence(step, "sequence"), positions.data(),
                                        static_cast<int64_t>(positions.size()), nullptr));
    } else if (op == "sequence_free") {
      expected(step, tq_sequence_free(owner.handle, sequence(step, "sequence"), nullptr));
    } else if (op == "sequence_length") {
      int64_t length = -1;
      if (expected(step, tq_sequence_length(owner.handle, sequence(step, "sequence"), &length)))
        expect_equal(step, length);
    } else if (op == "sequence_flags") {
      uint64_t flags = ~uint64_t{0};
      if (expected(step, tq_sequence_flags(owner.handle, sequence(step, "sequence"), &flags)))
        expect_equal(step, flags);
    } else {
      fail("unknown op");
    }
  }

  // Steps that make a sequence bind its name.
  void state_step(const Json& step, const std::string& op) {
    Cache& owner = cache(step);
    tq_sequence sequence = 0;
    const auto found = owner.sequences.find(step.at("sequence").get<std::string>());
    if (found != owner.sequences.end()) sequence = found->second;
    if (state_.run(step, op, owner.handle, &sequence)) owner.sequences[step.at("sequence")] = sequence;
  }

  void plan(const Json& step) {
    Batch& planned = batch(step);
    std::vector<tq_sequence> ids;
    for (const Json& name : step.at("sequences")) ids.push_back(cache(step).sequences.at(name));
    const std::vector<int64_t> new_tokens = step.at("new_tokens");
    const std::vector<int64_t> query_tokens =
        step.contains("query_tokens") ? step["query_tokens"].get<std::vector<int64_t>>() : new_tokens;
    if (!expected(step, tq_batch_plan(
                            planned.handle, static_cast<int32_t>(ids.size()), ids.data(), new_tokens.data(),
                            step.contains("query_tokens") ? query_tokens.data() : nullptr, nullptr)))
      return;
    planned.query_tokens = 0;
    for (int64_t count : query_tokens) planned.query_tokens += count;
  }

  void append(const Json& step) {
    tq_tensor_layout layout = {};
    layout.struct_size = sizeof layout;
    if (step.contains("layout")) contract::read_layout(step["layout"], layout);
    const void* const v =  // none: the layer is latent
        step.contains("v") ? tensor(step, "v").at(step.value("v_offset", 0)) : nullptr;
    expected(step, tq_cache_append(cache(step).handle, step.at("layer"), batch(step).handle,
                                   tensor(step, "k").at(step.value("k_offset", 0)), v,
                                   step.contains("layout") ? &layout : nullptr, nullptr));
  }

  void attend(const Json& step) {
    Cache& owner = cache(step);
    Batch& planned = batch(step);
    tq_attend_params params;
    const bool given = read_attend_params(step, params);
    size_t workspace_bytes = 0;
    const std::string kind = step.value("workspace", "own");
    if (kind != "own" && tq_attend_workspace_bytes(owner.handle, &workspace_bytes)) fail(tq_last_error());
    if (kind == "short") workspace_bytes = 1;
    const std::unique_ptr<char[]> memory(new char[workspace_bytes + 256]);
    void* workspace =
        reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.get()) + 255) & ~uintptr_t{255});
    const tq_layer_config shape = shape_of(step);
    const int64_t rows = planned.query_tokens * shape.num_q_heads;
    std::vector<uint8_t> out(static_cast<size_t>(rows * shape.value_dim) * 4),
        lse(static_cast<size_t>(rows) * 4);
    fill_with_nan(out);
    fill_with_nan(lse);
    if (!expected(step,
                  tq_cache_attend(owner.handle, step.at("layer"), planned.handle, input(step, "q"),
                                  out.data(), reinterpret_cast<float*>(lse.data()), given ? &params : nullptr,
                                  kind == "own" ? nullptr : workspace, workspace_bytes, nullptr)))
      return;
    compare(step, "out", out, TQ_F32);
    compare(step, "lse", lse, TQ_F32);
  }

  void read(const Json& step) {
    Cache& owner = cache(step);
    const tq_layer_config shape = shape_of(step);
    const int64_t count = step.at("count"), rows = (count > 0 ? count : 0) * shape.num_kv_heads;
    const int64_t size = owner.config.io_dtype == TQ_F32 ? 4 : 2;
    std::vector<uint8_t> k(static_cast<size_t>(rows * shape.head_dim * size)),
        v(static_cast<size_t>(rows * shape.value_dim * size));
    fill_with_nan(k);
    fill_with_nan(v);
    if (!expected(step, tq_cache_read(owner.handle, step.at("layer"), sequence(step, "sequence"),
                                      step.at("first"), count, k.data(), v.data(), nullptr, nullptr)))
      return;
    compare(step, "k", k, owner.config.io_dtype);
    compare(step, "v", v, owner.config.io_dtype);
  }

  void merge(const Json& step) {
    std::vector<const void*> outs;
    std::vector<const float*> lses;
    for (const Json& name : step.at("outs")) outs.push_back(tensors_.at(name).bytes.data());
    for (const Json& name : step.at("lses"))
      lses.push_back(reinterpret_cast<const float*>(tensors_.at(name).bytes.data()));
    const int64_t rows = step.at("rows");
    std::vector<uint8_t> out(static_cast<size_t>((rows > 0 ? rows : 0) * step.at("dim").get<int64_t>()) * 4),
        lse(static_cast<size_t>(rows > 0 ? rows : 0) * 4);
    fill_with_nan(out);
    fill_with_nan(lse);
    if (!expected(step, tq_merge_states(static_cast<int32_t>(outs.size()), outs.data(), lses.data(), rows,
                                        step.at("dim"), step.at("dtype"), out.data(),
                                        reinterpret_cast<float*>(lse.data()), TQ_DEVICE_CPU, 0, nullptr)))
      return;
    compare(step, "out", out, TQ_F32);
    compare(step, "lse", lse, TQ_F32);
  }

  std::map<std::string, Cache> caches_;
  contract::PagedSteps paged_;
  contract::StateSteps state_;
  std::map<std::string, uint64_t> fingerprints_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    fprintf(stderr, "usage: %s cases.json [case...]\n", arguments[0]);
    return 2;
  }
  std::ifstream file(arguments[1]);
  const Json data = Json::parse(file, nullptr, false);
  if (!data.is_object() || data.value("version", 0) != 1) {
    printf("not ok - %s is not a file of contract cases, version 1\n", arguments[1]);
    return 1;
  }
  const Tensors tensors = contract::load_tensors(data.at("tensors"));
  int failed = 0, ran = 0;
  for (const Json& test : data.at("cases")) {
    const std::string name = test.at("name");
    bool chosen = count == 2;
    for (int i = 2; i < count; i++) chosen |= name == arguments[i];
    if (!chosen) continue;
    ran++;
    try {
      Runner(tensors).run(test);
      printf("ok - %s\n", name.c_str());
    } catch (const std::exception& error) {
      printf("not ok - %s: %s\n", name.c_str(), error.what());
      failed++;
    }
  }
  return failed > 0 || ran == 0;
}
