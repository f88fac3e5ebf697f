// SPDX-License-Identifier: Apache-2.0
// Steps of state that travels: parts and files by their names, changed if a step says so.
#pragma once
#include <map>

#include "checks.h"

namespace contract {

// The MAC of the cases: 16 bytes; byte j of all makes t[j % 16] = 31 t[j % 16] + the byte + key.
struct CaseMac {
  uint8_t tag[16] = {};
  size_t at = 0;
  uint8_t key;

  void take(const void* bytes, size_t count) {
    for (size_t i = 0; i < count; i++, at++)
      tag[at % 16] = static_cast<uint8_t>(31 * tag[at % 16] + static_cast<const uint8_t*>(bytes)[i] + key);
  }
};

struct CaseFile {
  std::vector<uint8_t> bytes;
  size_t at = 0;
  CaseMac mac = {};

  static int32_t write(void* user, const void* from, size_t count) {
    auto& bytes = static_cast<CaseFile*>(user)->bytes;
    bytes.insert(bytes.end(), static_cast<const uint8_t*>(from), static_cast<const uint8_t*>(from) + count);
    return 0;
  }
  static int32_t read(void* user, void* to, size_t count) {
    CaseFile& file = *static_cast<CaseFile*>(user);
    if (count > file.bytes.size() - file.at) return 1;
    memcpy(to, file.bytes.data() + file.at, count);
    file.at += count;
    return 0;
  }
  static int32_t seal(void* user, const void* bytes, size_t count, void* tag) {
    CaseMac& mac = static_cast<CaseFile*>(user)->mac;
    if (tag)
      memcpy(tag, mac.tag, sizeof mac.tag);
    else
      mac.take(bytes, count);
    return 0;
  }
  tq_io io(const Json& step) {
    const bool sealed = step.contains("mac");
    if (sealed) mac.key = step["mac"];
    return tq_io{sizeof(tq_io), sealed ? 16 : 0, this, write, read, sealed ? seal : nullptr};
  }
};

class StateSteps : Checks {
 public:
  explicit StateSteps(const Tensors& tensors) : Checks(tensors) {}

  static bool knows(const std::string& op) {
    return op == "export" || op == "import" || op == "save" || op == "load";
  }
  // Whether *sequence is a new one.
  bool run(const Json& step, const std::string& op, tq_cache* cache, tq_sequence* sequence) {
    if (op == "export") export_part(step, cache, *sequence);
    if (op == "import") import_part(step, cache, *sequence);
    if (op == "save") save(step, cache, *sequence);
    return op == "load" && load(step, cache, sequence);
  }

 private:
  struct Part {
    tq_state state;
    std::vector<uint64_t> words;  // aligned to 16 by the allocator
  };

  void export_part(const Json& step, tq_cache* cache, tq_sequence sequence) {
    Part part = {};
    tq_state& state = part.state;
    state.struct_size = sizeof state;
    const auto range = [&](const char* name, auto& first, auto& count) {
      if (step.contains(name)) first = step[name][0], count = step[name][1];
    };
    range("layers", state.first_layer, state.num_layers);
    range("kv_heads", state.first_kv_head, state.num_kv_heads);
    range("tokens", state.first_token, state.num_tokens);
    tq_status status = tq_sequence_describe(cache, sequence, &state);
    part.words.resize(static_cast<size_t>(status == TQ_OK ? state.bytes : 0) / 8);
    if (status == TQ_OK)
      status = tq_sequence_export(cache, sequence, &state, part.words.data(), 8 * part.words.size(), nullptr);
    if (!expected(step, status)) return;
    if (step.contains("expect"))
      expect_fields(step["expect"], {{"first_layer", state.first_layer},
                                     {"num_layers", state.num_layers},
                                     {"first_kv_head", state.first_kv_head},
                                     {"num_kv_heads", state.num_kv_heads},
                                     {"first_token", state.first_token},
                                     {"num_tokens", state.num_tokens},
                                     {"exact_sinks", state.exact_sinks},
                                     {"exact_first", state.exact_first}});
    if (step.contains("equals") && part.words != parts_.at(step["equals"]).words)
      fail("other bytes than " + step["equals"].dump());
    parts_[step.at("save")] = part;
  }

  void import_part(const Json& step, tq_cache* cache, tq_sequence sequence) {
    Part part = parts_.at(step.at("part"));
    tq_state& state = part.state;
    size_t bytes = 8 * part.words.size();
    const Json change = step.value("change", Json::object());
    known(change, {"identity", "num_layers", "num_tokens", "first_token", "exact_sinks", "exact_first",
                   "rollback_tokens", "cut"});
    state.identity ^= change.value("identity", uint64_t{0});
    state.num_layers = change.value("num_layers", state.num_layers);
    state.num_tokens = change.value("num_tokens", state.num_tokens);
    state.first_token = change.value("first_token", state.first_token);
    state.exact_sinks = change.value("exact_sinks", state.exact_sinks);
    state.exact_first = change.value("exact_first", state.exact_first);
    state.rollback_tokens = change.value("rollback_tokens", state.rollback_tokens);
    bytes -= change.value("cut", size_t{0});
    expected(step, tq_sequence_import(cache, sequence, &state, part.words.data(), bytes, nullptr));
  }

  void save(const Json& step, tq_cache* cache, tq_sequence sequence) {
    CaseFile file;
    const tq_io io = file.io(step);
    if (!expected(step, tq_sequence_save(cache, sequence, &io, nullptr))) return;
    if (step.contains("equals") && file.bytes != files_.at(step["equals"]))
      fail("other bytes than " + step["equals"].dump());
    files_[step.at("save")] = file.bytes;
  }

  bool load(const Json& step, tq_cache* cache, tq_sequence* sequence) {
    CaseFile file;
    file.bytes = files_.at(step.at("file"));
    const Json change = step.value("change", Json::object());
    known(change, {"at", "xor", "cut"});
    const int64_t at = change.value("at", int64_t{0}), size = static_cast<int64_t>(file.bytes.size());
    file.bytes[static_cast<size_t>(at < 0 ? at + size : at)] ^= change.value("xor", uint8_t{0});
    file.bytes.resize(file.bytes.size() - change.value("cut", size_t{0}));
    const tq_io io = file.io(step);
    return expected(step, tq_sequence_load(cache, &io, nullptr, sequence));
  }

  std::map<std::string, Part> parts_;
  std::map<std::string, std::vector<uint8_t>> files_;
};

}  // namespace contract
