// SPDX-License-Identifier: Apache-2.0
//
// See saved_convert.h. All inputs have the same runs in the same order, for other kv heads: run i of the
// joined file is, head range by head range, run i of the inputs.
#include "cli/saved_convert.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "cli/output.h"
#include "cli/printable.h"

namespace tq::cli {
namespace {

constexpr char kOption[] = "--output";

using Inputs = std::vector<std::unique_ptr<SavedFile>>;

[[noreturn]] void differ(const SavedFile& a, const SavedFile& b, const std::string& what) {
  throw SavedError(printable(a.path()) + " and " + printable(b.path()) + " do not join: " + what);
}

std::string pair(const char* name, int64_t a, int64_t b) {
  return std::string(name) + " = " + std::to_string(a) + " and " + std::to_string(b);
}

// What must be the same in files of one sequence.
void check_alike(const SavedFile& a, const SavedFile& b) {
  const SavedHeader &x = a.header(), &y = b.header();
  const auto same = [&](const char* name, int64_t one, int64_t other) {
    if (one != other) differ(a, b, pair(name, one, other));
  };
  same("first_layer", x.first_layer, y.first_layer);
  same("num_layers", static_cast<int64_t>(x.layers.size()), static_cast<int64_t>(y.layers.size()));
  same("first_token", x.first_token, y.first_token), same("num_tokens", x.num_tokens, y.num_tokens);
  same("exact_type", x.exact_type, y.exact_type), same("exact_sinks", x.exact_sinks, y.exact_sinks);
  same("exact_first", x.exact_first, y.exact_first), same("rollback", x.rollback, y.rollback);
  for (size_t i = 0; i < x.layers.size(); i++) {
    const SavedLayer &one = x.layers[i], &other = y.layers[i];
    const std::string layer = "layer " + std::to_string(one.number) + ": ";
    if (one.reads != other.reads) differ(a, b, layer + pair("reads layer", one.reads, other.reads));
    if (one.window != other.window) differ(a, b, layer + pair("sliding_window", one.window, other.window));
    if (std::memcmp(&one.key, &other.key, sizeof one.key) != 0) differ(a, b, layer + "the codes of its keys");
    if (std::memcmp(&one.value, &other.value, sizeof one.value) != 0)
      differ(a, b, layer + "the codes of its values");
  }
}

// The header of all inputs together; they are sorted by their kv heads.
SavedHeader joined(Inputs& inputs) {
  std::sort(inputs.begin(), inputs.end(), [](const auto& a, const auto& b) {
    const auto first = [](const SavedFile& input) {
      for (const SavedLayer& layer : input.header().layers)
        if (layer.stores()) return layer.first_head;
      return uint32_t{0};
    };
    return first(*a) < first(*b);
  });
  SavedHeader all = inputs[0]->header();
  for (size_t i = 1; i < inputs.size(); i++) {
    check_alike(*inputs[0], *inputs[i]);
    const SavedHeader& more = inputs[i]->header();
    all.noticed |= more.noticed;
    for (size_t k = 0; k < all.layers.size(); k++) {
      SavedLayer& layer = all.layers[k];
      if (!layer.stores()) continue;
      if (layer.first_head + layer.num_heads != more.layers[k].first_head)
        differ(*inputs[i - 1], *inputs[i],
               "layer " + std::to_string(layer.number) + ": its kv heads up to " +
                   std::to_string(layer.first_head + layer.num_heads - 1) + ", then those from " +
                   std::to_string(more.layers[k].first_head) + " on");
      layer.num_heads += more.layers[k].num_heads;
      layer.centres.insert(layer.centres.end(), more.layers[k].centres.begin(), more.layers[k].centres.end());
    }
  }
  return all;
}

void cut_heads(SavedLayer& layer, const NumberRange& heads) {
  if (heads.all() || !layer.stores()) return;
  const int64_t first = layer.first_head, end = first + layer.num_heads;
  if (heads.first < first || heads.last >= end)
    throw SavedError("--kv-heads " + std::to_string(heads.first) + "-" + std::to_string(heads.last) +
                     ": layer " + std::to_string(layer.number) + " has the kv heads " +
                     std::to_string(first) + " to " + std::to_string(end - 1));
  const auto begin = layer.centres.begin() + 2 * (heads.first - first);
  layer.num_heads = static_cast<uint32_t>(heads.last - heads.first + 1);
  layer.centres = std::vector<uint64_t>(begin, begin + 2 * std::ptrdiff_t{layer.num_heads});
  layer.first_head = static_cast<uint32_t>(heads.first);
}

SavedHeader cut(const SavedHeader& all, const ConvertOptions& options) {
  SavedHeader part = all;
  part.layers.clear();
  bool slides = false;
  for (SavedLayer layer : all.layers) {
    if (!options.layers.has(layer.number)) continue;
    if (!options.layers.has(layer.reads))
      throw SavedError("--layers: layer " + std::to_string(layer.number) + " reads the tokens of layer " +
                       std::to_string(layer.reads) + ", which is left out");
    cut_heads(layer, options.kv_heads);
    slides |= layer.stores() && layer.window != 0;
    part.layers.push_back(std::move(layer));
  }
  if (part.layers.empty() ||
      (!options.layers.all() &&
       part.layers.size() != static_cast<size_t>(options.layers.last - options.layers.first + 1)))
    throw SavedError("--layers " + std::to_string(options.layers.first) + "-" +
                     std::to_string(options.layers.last) + ": there are the layers " +
                     std::to_string(all.first_layer) + " to " +
                     std::to_string(all.first_layer + all.layers.size() - 1));
  part.first_layer = part.layers[0].number;
  if (!slides) part.rollback = 0;
  if (!options.exact_copies) {
    part.exact_type = 0;
    part.exact_sinks = part.first_token;
    part.exact_first = part.end();
  }
  part.runs(&part.payload_bytes);
  part.identity = part.computed_identity();
  return part;
}

// Bytes of a saved sequence, front to back: checksums behind the pieces, digest and mark.
class SavedWriter {
 public:
  SavedWriter(WholeFile& file, const SavedHeader& header)
      : file_(file), digest_(XXH3_createState(), XXH3_freeState) {
    if (!digest_ || XXH3_128bits_reset(digest_.get()) != XXH_OK) throw std::bad_alloc();
    const std::string bytes = header.bytes();
    put(bytes.data(), bytes.size());
  }
  void payload(const uint8_t* bytes, size_t count) {
    while (count > 0) {
      const size_t part = std::min<size_t>(count, kSavedPiece - piece_.size());
      piece_.insert(piece_.end(), bytes, bytes + part);
      bytes += part, count -= part;
      if (piece_.size() == kSavedPiece) end_piece();
    }
  }
  void end() {
    if (!piece_.empty()) end_piece();
    const XXH128_hash_t digest = XXH3_128bits_digest(digest_.get());
    const std::string tail = saved_tail(digest.low64, digest.high64);
    file_.write(tail.data(), tail.size());
  }

 private:
  void put(const void* bytes, size_t count) {
    XXH3_128bits_update(digest_.get(), bytes, count);
    file_.write(bytes, count);
  }
  void end_piece() {
    const uint64_t checksum = XXH3_64bits_withSeed(piece_.data(), piece_.size(), ++pieces_);
    put(piece_.data(), piece_.size());
    put(&checksum, sizeof checksum);
    piece_.clear();
  }

  WholeFile& file_;
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> digest_;
  std::vector<uint8_t> piece_;
  uint64_t pieces_ = 0;
};

// Run `index` of each input, of the heads that `layer` has.
void copy_run(const Inputs& inputs, size_t index, const SavedLayer& layer, SavedWriter& writer,
              const std::function<void(uint64_t)>& progress) {
  std::vector<uint8_t> bytes;
  for (const auto& input : inputs) {
    const SavedRun& run = input->runs()[index];
    const SavedLayer& own = input->header().layers[run.layer];
    const uint64_t first = std::max(own.first_head, layer.first_head),
                   end = std::min<uint64_t>(uint64_t{own.first_head} + own.num_heads,
                                            uint64_t{layer.first_head} + layer.num_heads);
    if (first >= end) continue;
    uint64_t at = run.offset + (first - own.first_head) * run.head_bytes,
             left = (end - first) * run.head_bytes;
    while (left > 0) {
      bytes.resize(std::min(left, kSavedPiece));
      input->read_payload(at, bytes.size(), bytes.data());
      writer.payload(bytes.data(), bytes.size());
      at += bytes.size(), left -= bytes.size();
      progress(bytes.size());
    }
  }
}

}  // namespace

SavedHeader convert_saved(const std::vector<std::string>& paths, const std::string& output,
                          const ConvertOptions& options,
                          const std::function<void(uint64_t, uint64_t)>& progress) {
  Inputs inputs;
  uint64_t whole = 0, done = 0;
  for (const std::string& path : paths) {
    inputs.push_back(std::make_unique<SavedFile>(path));
    whole += inputs.back()->file_bytes();
  }
  for (const auto& input : inputs) {
    input->verify([&](uint64_t bytes) { progress(done + bytes, whole); });
    done += input->file_bytes();
  }
  const SavedHeader all = joined(inputs);
  SavedHeader part = cut(all, options);
  const std::vector<SavedRun>& runs = inputs[0]->runs();
  WholeFile file(kOption, output);
  SavedWriter writer(file, part);
  done = 0;
  for (size_t i = 0; i < runs.size(); i++) {
    const uint32_t number = all.layers[runs[i].layer].number;
    if (!options.layers.has(number) || (runs[i].exact && !options.exact_copies)) continue;
    copy_run(inputs, i, part.layers[number - part.first_layer], writer,
             [&](uint64_t bytes) { progress(done += bytes, part.payload_bytes); });
  }
  writer.end();
  file.commit();
  return part;
}

}  // namespace tq::cli
