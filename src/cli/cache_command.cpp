// SPDX-License-Identifier: Apache-2.0
//
// See cache_command.h. verify does what checksums can do and then has the library load the file into a cache
// made of the header, which looks at every tile. Centres are in a file as hashes alone, so a file with some
// is loaded by nobody who does not have them.
#include "cli/cache_command.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/library.h"
#include "cli/output.h"
#include "cli/printable.h"
#include "cli/progress.h"
#include "cli/report.h"

namespace tq::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kTypeNames[] = {"none", "float32", "float16", "bfloat16"};

std::string hex(uint64_t number) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%016llx", static_cast<unsigned long long>(number));
  return text;
}

// "3", "2-5" -> numbers; empty: all.
NumberRange parse_range(const char* option, const std::string& text) {
  NumberRange range;
  if (text.empty()) return range;
  const auto number = [&](const std::string& digits) -> int64_t {
    if (digits.empty() || digits.size() > 5 || digits.find_first_not_of("0123456789") != std::string::npos)
      throw CLI::ValidationError(option, in_quotes(text) + " is not a number or a range like 2-5");
    return std::stol(digits);
  };
  const size_t dash = text.find('-');
  range.first = number(text.substr(0, dash));
  range.last = dash == std::string::npos ? range.first : number(text.substr(dash + 1));
  if (range.last < range.first) throw CLI::ValidationError(option, in_quotes(text) + " runs backwards");
  return range;
}

// ---- info ----

std::vector<uint32_t> band_bits(const SavedSide& side) {
  std::vector<uint32_t> bits;
  for (uint32_t band = 0; band < side.num_bands(); band++) bits.push_back(side.band_bits(band));
  return bits;
}

Json side_json(const SavedSide& side) {
  Json json;
  json["dim"] = side.dim;
  json["bits"] = side.bits;
  if (side.raw()) {
    json["type"] = kTypeNames[side.raw_type + 1];
  } else if (side.grouped()) {
    json["group_size"] = side.variant;
  } else {
    json["rotation"] = rotation_name(static_cast<int32_t>(side.rotation));
    json["seed"] = side.seed;
    const uint32_t bits = side.code() == kSavedProd      ? side.bits - 1
                          : side.code() == kSavedTrellis ? side.bits + 1
                                                         : side.bits;
    const int count = bits == 8 ? 0 : 1 << (bits - 1);
    if (side.code() == kSavedTrellis || side.code() == kSavedTrellisBands) json["trellis"] = true;
    if (side.banded()) {
      json["band_bits"] = band_bits(side);
      return json;
    }
    if (side.code() == kSavedProd) json["sketch"] = side.variant == 2 ? "gaussian" : "orthogonal";
    if (side.code() == kSavedLevels) {
      json["levels"] = "the caller's";
      return json;
    }
    json["magnitudes"] = std::vector<int>(side.magnitudes, side.magnitudes + count);
  }
  return json;
}

Json info_json(const SavedFile& file) {
  const SavedHeader& h = file.header();
  Json json;
  json["file"] = printable(file.path());
  json["format_version"] = kSavedVersion;
  json["bytes"] = file.file_bytes();
  json["whole_bytes"] = file.whole_bytes();
  json["payload_bytes"] = h.payload_bytes;
  json["first_token"] = h.first_token;
  json["tokens"] = h.num_tokens;
  json["exact_copies"] = {
      {"type", kTypeNames[h.exact_type]}, {"sinks_end", h.exact_sinks}, {"window_begin", h.exact_first}};
  json["rollback_tokens"] = h.rollback;
  json["nonfinite"] = (h.noticed & 1) != 0;
  json["saturated"] = (h.noticed & 2) != 0;
  json["identity"] = hex(h.identity);
  json["mac_bytes"] = h.mac_bytes;
  json["centres"] = h.has_centres();  // or key matrices; with bands, or orders of coordinates
  json["layers"] = Json::array();
  for (const SavedLayer& layer : h.layers) {
    Json entry;
    entry["layer"] = layer.number;
    if (layer.stores()) {
      entry["first_kv_head"] = layer.first_head;
      entry["kv_heads"] = layer.num_heads;
      entry["sliding_window"] = layer.window;
      entry[layer.key.latent() ? "rest" : "key"] = side_json(layer.key);
      entry[layer.key.latent() ? "latent" : "value"] = side_json(layer.value);
    } else {
      entry["reads_layer"] = layer.reads;
    }
    json["layers"].push_back(entry);
  }
  return json;
}

std::string side_text(const SavedSide& side) {
  std::string text = std::to_string(side.dim) + " x ";
  if (side.raw()) return text + kTypeNames[side.raw_type + 1];
  if (side.grouped())
    return text + std::to_string(side.bits) + " bits in groups of " + std::to_string(side.variant);
  if (side.code() == kSavedLevels) text += "levels of the caller's, ";
  if (side.code() == kSavedTrellis || side.code() == kSavedTrellisBands) text += "trellis, ";
  if (side.banded()) {
    text += "bands of ";
    for (const uint32_t bits : band_bits(side)) text += std::to_string(bits) + " ";
    return text + "bits, seed " + std::to_string(side.seed);
  }
  if (side.code() == kSavedProd) text += side.variant == 2 ? "prod with a Gaussian sketch, " : "prod, ";
  return text + std::to_string(side.bits) + " bits, " + rotation_name(static_cast<int32_t>(side.rotation)) +
         " of seed " + std::to_string(side.seed);
}

std::string layer_text(const SavedLayer& layer) {
  if (!layer.stores()) return "reads the tokens of layer " + std::to_string(layer.reads);
  std::string text = "kv heads " + std::to_string(layer.first_head) + "-" +
                     std::to_string(layer.first_head + layer.num_heads - 1);
  if (layer.key.latent())
    text += ", latents " + side_text(layer.value) + ", the rest of their keys " + side_text(layer.key);
  else
    text += ", keys " + side_text(layer.key) + ", values " + side_text(layer.value);
  if (layer.window != 0) text += ", sliding window " + std::to_string(layer.window);
  return text;
}

std::string exact_text(const SavedHeader& h) {
  if (h.exact_type == 0) return "none";
  return std::string(kTypeNames[h.exact_type]) + " of the first " +
         std::to_string(h.exact_sinks - h.first_token) + " and the last " +
         std::to_string(h.end() - h.exact_first) + " tokens";
}

// Equal neighbours in one line.
void print_layers(std::ostream& out, const std::vector<SavedLayer>& layers) {
  for (size_t i = 0; i < layers.size();) {
    const std::string text = layer_text(layers[i]);
    size_t end = i + 1;
    while (end < layers.size() && layer_text(layers[end]) == text) end++;
    const std::string last = end > i + 1 ? "-" + std::to_string(layers[end - 1].number) : "";
    out << "layers         " << layers[i].number << last << ": " << text << "\n";
    i = end;
  }
}

void print_info(std::ostream& out, const SavedFile& file) {
  const SavedHeader& h = file.header();
  out << printable(file.path()) << ": a saved sequence, format version " << kSavedVersion << "\n"
      << "bytes          " << file.file_bytes();
  if (file.file_bytes() != file.whole_bytes()) out << "; whole it would have " << file.whole_bytes();
  out << "\ntokens         " << h.num_tokens << "\n"
      << "exact copies   " << exact_text(h) << "\n"
      << "noticed        " << (h.noticed & 1 ? "non-finite inputs " : "")
      << (h.noticed & 2 ? "saturated inputs" : "") << (h.noticed == 0 ? "nothing" : "") << "\n"
      << "centres        "
      << (h.has_centres() ? (h.has_bands() ? "orders of bands, perhaps centres or key matrices"
                                           : "yes, or key matrices") +
                                std::string(" (as hashes; a cache that loads it must have them)")
                          : "none")
      << "\nidentity       " << hex(h.identity) << "\n"
      << "MAC            "
      << (h.mac_bytes == 0 ? "none" : std::to_string(h.mac_bytes) + " bytes (only its key can check it)")
      << "\n";
  print_layers(out, h.layers);
}

// ---- verify ----

// Lent to the library for the time of a load.
int32_t read_file(void* user, void* bytes, size_t count) {
  auto& stream = *static_cast<std::ifstream*>(user);
  stream.read(static_cast<char*>(bytes), static_cast<std::streamsize>(count));
  return stream.gcount() == static_cast<std::streamsize>(count) ? 0 : stream.eof() ? 1 : -1;
}

// A cache that the file fits into.
class Loader {
 public:
  explicit Loader(const SavedHeader& h) : config_(new_config()) {
    config_.num_layers = static_cast<int32_t>(h.layers.size());
    config_.first_layer = static_cast<int32_t>(h.first_layer);
    config_.max_tokens = std::max<int64_t>(h.num_tokens, 1);
    config_.num_threads = 1;
    config_.max_batch_tokens = 1;
    config_.io_dtype = h.exact_type != 0 ? static_cast<int32_t>(h.exact_type) : TQ_F32;
    for (const SavedLayer& layer : h.layers) {
      layers_.push_back(layer_config(h, layer));
      config_.max_tokens = std::max<int64_t>(config_.max_tokens, int64_t{layer.window} + 1);
      for (const SavedSide* side : {&layer.key, &layer.value}) {
        if (!layer.stores()) continue;
        if (side->rotation != 0) config_.rotation_seed = side->seed;
        if (side->code() == kSavedProd) {
          config_.sketch = static_cast<int32_t>(side->variant);
          std::memcpy(&config_.sketch_factor, side->magnitudes + 28, sizeof config_.sketch_factor);
        }
        if (side->rotation != 0) continue;
        if (side->raw() && h.exact_type == 0) config_.io_dtype = side->raw_type == 2 ? TQ_BF16 : TQ_F16;
      }
    }
    config_.rollback_tokens =
        static_cast<int32_t>(std::max<int64_t>(0, std::min<int64_t>(h.rollback, INT32_MAX / 4)));
    config_.layers = layers_.data();
  }

  // With the built-in codebooks, then with the file's own for the widths that its first layer has.
  tq_status load(const std::string& path, const SavedHeader& h) {
    tq_status status = load_once(path);
    if (status != TQ_ERROR_INCOMPATIBLE) return status;
    const SavedSide sides[] = {h.layers[0].key, h.layers[0].value};
    const tq_codebook** chosen[] = {&config_.key_codebook, &config_.value_codebook};
    for (int i = 0; i < 2; i++) {
      if (!h.layers[0].stores() || sides[i].code() != kSavedScalar || sides[i].bits == 8) continue;
      books_[i] = tq_codebook{sizeof(tq_codebook), static_cast<int32_t>(sides[i].bits), 1, {}};
      std::memcpy(books_[i].magnitude, sides[i].magnitudes, sizeof books_[i].magnitude);
      *chosen[i] = &books_[i];
    }
    return load_once(path);
  }

 private:
  static tq_layer_config layer_config(const SavedHeader& h, const SavedLayer& from) {
    tq_layer_config layer = {};
    layer.struct_size = sizeof layer;
    if (!from.stores()) {
      const uint32_t source = from.reads - h.first_layer;
      layer.shares_layer = static_cast<int32_t>(source + 1);
      layer.num_q_heads = static_cast<int32_t>(h.layers[source].num_heads);
      return layer;
    }
    layer.num_q_heads = layer.num_kv_heads = static_cast<int32_t>(from.num_heads);
    layer.first_kv_head = static_cast<int32_t>(from.first_head);
    layer.layer_kind = from.key.latent() ? TQ_LATENT : TQ_KEYS_VALUES;
    layer.head_dim = static_cast<int32_t>(from.key.dim + (from.key.latent() ? from.value.dim : 0));
    layer.value_dim = static_cast<int32_t>(from.value.dim);
    layer.key_bits = static_cast<int32_t>(from.key.bits);
    layer.value_bits = static_cast<int32_t>(from.value.bits);
    layer.key_family = from.key.raw() ? TQ_CODE_SCALAR : static_cast<int32_t>(from.key.code());
    layer.value_family = from.value.raw() ? TQ_CODE_SCALAR : static_cast<int32_t>(from.value.code());
    for (const SavedSide* side : {&from.key, &from.value})
      if (side->grouped()) layer.group_size = static_cast<int32_t>(side->variant);
    layer.rotation = static_cast<int32_t>(std::max(from.key.rotation, from.value.rotation));
    layer.sliding_window = static_cast<int32_t>(from.window);
    return layer;
  }
  tq_status load_once(const std::string& path) {
    const Cache cache(config_);
    std::ifstream stream(path, std::ios::binary);
    tq_io io = {sizeof io, 0, &stream, nullptr, read_file, nullptr};
    tq_sequence sequence = 0;
    return tq_sequence_load(cache.get(), &io, nullptr, &sequence);
  }

  tq_cache_config config_;
  std::vector<tq_layer_config> layers_;
  tq_codebook books_[2] = {};
};

}  // namespace

// ---- CacheCommand ----

CacheCommand::CacheCommand(CLI::App& app, const char* footer) {
  CLI::App* cache = app.add_subcommand("cache",
                                       "Saved sequences (tq_sequence_save): what they are, whether they are "
                                       "whole, cut and joined by kv heads and layers");
  cache->require_subcommand(1);
  info_ =
      cache->add_subcommand("info", "What the header says; its checksum is checked, the tokens are not read");
  verify_ = cache->add_subcommand("verify", "Read every byte: checksums, end mark, and what a tile may hold");
  convert_ = cache->add_subcommand(
      "convert",
      "Join files of ranks, or leave out kv heads, layers or exact copies; codes stay as they are");
  for (CLI::App* each : {info_, verify_})
    each->add_option("file", files_, "saved sequence")->required()->expected(1);
  info_->add_flag("--json", json_, "one JSON document on stdout");
  convert_->add_option("file", files_, "saved sequence; several: kv heads of one sequence")->required();
  convert_->add_option("--output,-o", output_, "file to write, whole or not at all")->required();
  convert_->add_option("--kv-heads", kv_heads_, "only these, as 0-3, in numbers of the whole model");
  convert_->add_option("--layers", layers_, "only these, as 0-15, in numbers of the whole model");
  convert_->add_flag("--no-exact-copies", no_exact_, "codes alone, without window and sinks");
  for (CLI::App* each : {cache, info_, verify_, convert_}) each->footer(footer);
  for (CLI::App* each : {verify_, convert_}) each->add_flag("--quiet", quiet_, "no progress on stderr");
}

void CacheCommand::check() const {
  if (!*convert_) return;
  parse_range("--kv-heads", kv_heads_);
  parse_range("--layers", layers_);
  for (const std::string& file : files_)
    if (same_file(file, output_))
      throw CLI::ValidationError("--output", in_quotes(output_) + " is the input itself, " + in_quotes(file));
}

void CacheCommand::run() const {
  if (*info_) info();
  if (*verify_) verify();
  if (*convert_) convert();
}

void CacheCommand::info() const {
  const SavedFile file(files_[0]);
  if (json_)
    std::cout << info_json(file).dump(2) << "\n";
  else
    print_info(std::cout, file);
}

void CacheCommand::verify() const {
  SavedFile file(files_[0]);
  {
    ProgressLine line(quiet_);
    file.verify([&](uint64_t done) {
      line.show(static_cast<int64_t>(done), static_cast<int64_t>(file.file_bytes()), "checksums");
    });
  }
  const SavedHeader& h = file.header();
  std::cout << printable(file.path()) << ": " << h.num_tokens << " tokens of " << h.layers.size()
            << " layers in " << file.file_bytes() << " bytes: all checksums agree";
  if (h.has_bands()) {
    std::cout << ". It has keys in bands, whose order is not in the file: tiles were not looked at\n";
    return;
  }
  if (h.has_centres()) {
    std::cout << ". It has centres or key matrices, which are not in the file: tiles were not looked at\n";
    return;
  }
  if (h.has_levels()) {
    std::cout
        << ". It has codes by the caller's levels, which are not in the file: tiles were not looked at\n";
    return;
  }
  flush_stdout();
  const tq_status status = Loader(h).load(files_[0], h);
  if (status == TQ_ERROR_CORRUPT_DATA) {
    std::cout << "\n";
    throw SavedError(printable(file.path()) + ": " + tq_last_error());
  }
  if (status != TQ_OK) std::cout << "\n";
  tq::cli::check(status, "tq_sequence_load");
  std::cout << ", and a cache loads it\n";
}

void CacheCommand::convert() const {
  check_output_path("--output", output_);
  ConvertOptions options;
  options.kv_heads = parse_range("--kv-heads", kv_heads_);
  options.layers = parse_range("--layers", layers_);
  options.exact_copies = !no_exact_;
  ProgressLine line(quiet_);
  const SavedHeader written = convert_saved(files_, output_, options, [&](uint64_t done, uint64_t of) {
    line.show(static_cast<int64_t>(done), static_cast<int64_t>(of), "bytes");
  });
  std::cout << printable(output_) << ": " << written.num_tokens << " tokens, " << written.layers.size()
            << " layers, " << written.payload_bytes << " bytes of tiles"
            << (written.mac_bytes != 0 ? "; without the MAC that an input had" : "") << "\n";
}

}  // namespace tq::cli
