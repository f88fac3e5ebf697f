// SPDX-License-Identifier: Apache-2.0
//
// See info.h. The support lists come from tq_cache_config_check over candidates, so that they cannot disagree
// with the library.
#include "cli/info.h"

#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "cli/library.h"
#include "cli/report.h"

namespace tq::cli {
namespace {

using Json = nlohmann::ordered_json;

tq_cache_config candidate(int32_t device_type) {
  tq_cache_config config = new_config();
  config.device_type = device_type;
  config.num_layers = 1;
  config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim = 128;
  config.io_dtype = TQ_F32;
  config.key_bits = config.value_bits = 4;
  config.max_tokens = 64;
  return config;
}

// Levels of 4 bits, such as a caller's.
const tq_levels& any_levels() {
  static const std::vector<float> numbers = {-8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8};
  static const tq_levels levels = {sizeof(tq_levels), 4, 0, 0, numbers.data(), numbers.data()};
  return levels;
}

bool accepted(const tq_cache_config& config) { return tq_cache_config_check(&config, nullptr, 0) == TQ_OK; }

std::vector<int32_t> accepted_values(int32_t device_type, int32_t low, int32_t high,
                                     const std::function<void(tq_cache_config&, int32_t)>& set) {
  std::vector<int32_t> values;
  for (int32_t value = low; value <= high; ++value) {
    tq_cache_config config = candidate(device_type);
    set(config, value);
    if (accepted(config)) values.push_back(value);
  }
  return values;
}

Json support(int32_t device_type) {
  Json json;
  json["head_dim"] = accepted_values(device_type, 1, 1024,
                                     [](tq_cache_config& config, int32_t value) { config.head_dim = value; });
  json["key_bits"] = accepted_values(device_type, 1, 32,
                                     [](tq_cache_config& config, int32_t value) { config.key_bits = value; });
  json["value_bits"] = accepted_values(
      device_type, 1, 32, [](tq_cache_config& config, int32_t value) { config.value_bits = value; });
  for (const bool key : {true, false}) {
    Json families = Json::array();
    for (const int32_t value : accepted_values(
             device_type, TQ_CODE_SCALAR, TQ_CODE_TRELLIS, [&](tq_cache_config&config, int32_t family) {
               (key ? config.key_family : config.value_family) = family;
               if (family == TQ_CODE_LEVELS) (key ? config.key_levels : config.value_levels) = &any_levels();
             })) {
      families.push_back(family_name(value));
    }
    json[key ? "key_family" : "value_family"] = families;
  }
  Json rotations = Json::array();
  for (const int32_t value : accepted_values(
           device_type, 1, 2, [](tq_cache_config&config, int32_t rotation) { config.rotation = rotation; })) {
    rotations.push_back(rotation_name(value));
  }
  json["rotation"] = rotations;
  Json dtypes = Json::array();
  const char* const names[] = {"", "f32", "f16", "bf16"};
  for (const int32_t value : accepted_values(
           device_type, 1, 3, [](tq_cache_config&config, int32_t dtype) { config.io_dtype = dtype; })) {
    dtypes.push_back(names[value]);
  }
  json["io_dtype"] = dtypes;
  return json;
}

Json devices_json() {
  Json devices = Json::array();
  for (const int32_t type : {TQ_DEVICE_CPU, TQ_DEVICE_CUDA}) {
    int32_t count = 0;
    check(tq_device_count(type, &count), "tq_device_count");
    for (int32_t index = 0; index < count; ++index) {
      tq_device_info info = {};
      info.struct_size = sizeof info;
      check(tq_device_get_info(type, index, &info), "tq_device_info");
      Json device = {{"type", type == TQ_DEVICE_CPU ? "cpu" : "cuda"}, {"id", info.device_id}};
      device[type == TQ_DEVICE_CPU ? "simd" : "name"] = info.name;
      device[type == TQ_DEVICE_CPU ? "threads" : "multiprocessors"] = info.num_units;
      if (type == TQ_DEVICE_CUDA)
        device["compute_capability"] = format("%d.%d", info.compute_major, info.compute_minor);
      device["memory_bytes"] = info.memory_bytes;
      devices.push_back(device);
    }
  }
  return devices;
}

// The instruction sets of tq_build_info: "...; simd A B C, using B; ...".
std::vector<std::string> instruction_sets() {
  const std::string info = tq_build_info(), head = "; simd ";
  const size_t start = info.find(head);
  std::vector<std::string> names;
  if (start == std::string::npos) return names;
  std::istringstream list(info.substr(start + head.size(), info.find(',', start) - start - head.size()));
  for (std::string name; list >> name;) names.push_back(name);
  return names;
}

// Where a run of equally spaced numbers that starts at `first` ends; first itself if it is none.
size_t run_end(const Json& list, size_t first) {
  size_t last = first + 1;
  if (last >= list.size() || !list[first].is_number()) return first;
  const int64_t step = list[last].get<int64_t>() - list[first].get<int64_t>();
  while (last + 1 < list.size() && list[last + 1].get<int64_t>() - list[last].get<int64_t>() == step) last++;
  return last;
}

// "2 3 4"; long runs as "8 12 .. 256".
std::string list_text(const Json& list) {
  constexpr size_t kLongRun = 8;
  std::string text;
  for (size_t i = 0; i < list.size(); i++) {
    const Json& item = list[i];
    text += (text.empty() ? "" : " ") + (item.is_string() ? item.get<std::string>() : item.dump());
    const size_t last = run_end(list, i);
    if (last - i < kLongRun) continue;
    text += " " + list[i + 1].dump() + " .. " + list[last].dump();
    i = last;
  }
  return text.empty() ? "none" : text;
}

void print_text(std::ostream& out, const Json& info) {
  out << "tqkv " << info["version"].get<std::string>() << ", ABI " << info["abi"].dump() << "\n"
      << info["build"].get<std::string>() << "\n\ndevices\n";
  for (const Json& device : info["devices"]) {
    const bool cpu = device["type"] == "cpu";
    out << format("  %-5s %d  %s, %d %s, %.1f GiB", cpu ? "cpu" : "cuda", device["id"].get<int>(),
                  device[cpu ? "simd" : "name"].get<std::string>().c_str(),
                  device[cpu ? "threads" : "multiprocessors"].get<int>(), cpu ? "threads" : "multiprocessors",
                  device["memory_bytes"].get<double>() / (1024.0 * 1024 * 1024))
        << (cpu ? "" : ", compute capability " + device["compute_capability"].get<std::string>()) << "\n";
  }
  for (const auto& [device, lists] : info["support"].items()) {
    out << "\nsupported on " << device << "\n";
    for (const auto& [name, list] : lists.items())
      out << format("  %-12s ", name.c_str()) << list_text(list) << "\n";
  }
}

}  // namespace

void print_info(std::ostream& out, bool json) {
  Json info = {{"version", tq_version()},
               {"abi", tq_abi_version()},
               {"build", tq_build_info()},
               {"devices", devices_json()}};
  info["cpu"] = {{"isa", info["devices"][0]["simd"]}, {"isas", instruction_sets()}};
  info["support"]["cpu"] = support(TQ_DEVICE_CPU);
  const tq_cache_config cuda = candidate(TQ_DEVICE_CUDA);
  char reasons[1024] = "";
  const tq_status status = tq_cache_config_check(&cuda, reasons, sizeof reasons);
  if (status == TQ_OK) {
    info["support"]["cuda"] = support(TQ_DEVICE_CUDA);
  } else {
    info["cuda_unavailable"] = std::string(tq_status_name(status)) + ": " + reasons;
  }
  if (json) {
    out << info.dump(1) << "\n";
    return;
  }
  print_text(out, info);
  if (status != TQ_OK) out << "\ncuda: " << info["cuda_unavailable"].get<std::string>() << "\n";
}

}  // namespace tq::cli
