// SPDX-License-Identifier: Apache-2.0
// Prints what the library supports as Markdown, by asking tq_cache_config_check and tq_cache_config_bytes
// about every combination, and the lists of CUDA kernels, which a build without CUDA can read too: the
// README's table cannot promise what the code refuses.
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "cuda/attend/instances.h"
#include "cuda/dispatch.h"
#include "format/tile_layout.h"
#include "tqkv.h"

namespace {

tq_cache_config config_of(int dim, int key_bits, int value_bits, int dtype, int rotation) {
  tq_cache_config config;
  tq_cache_config_init(&config);
  config.num_layers = config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim = dim;
  config.key_bits = key_bits;
  config.value_bits = value_bits;
  config.io_dtype = dtype;
  config.rotation = rotation;
  config.max_tokens = 64;
  return config;
}

bool supported(const tq_cache_config& config) { return tq_cache_config_check(&config, nullptr, 0) == TQ_OK; }

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text.empty() ? "none" : text;
}

// "8, 12 .. 256, 512": long runs of equal steps by their ends.
std::string ranges(const std::vector<int>& numbers) {
  constexpr size_t kLongRun = 8;
  std::vector<std::string> words;
  for (size_t i = 0; i < numbers.size(); i++) {
    words.push_back(std::to_string(numbers[i]));
    size_t last = i + 1;
    while (last + 1 < numbers.size() && numbers[last + 1] - numbers[last] == numbers[i + 1] - numbers[i])
      last++;
    if (last - i < kLongRun || last >= numbers.size()) continue;
    words.push_back(std::to_string(numbers[i + 1]) + " .. " + std::to_string(numbers[last]));
    i = last;
  }
  return joined(words);
}

// Dimensions that work with every pair of widths and every dtype at a rotation.
std::vector<int> dims(int rotation) {
  std::vector<int> found;
  for (int dim = 1; dim <= 1024; dim++) {
    bool all = true;
    for (int key : tq::format::kCodeBits)
      for (int value : tq::format::kCodeBits)
        for (int dtype : {TQ_F32, TQ_F16, TQ_BF16})
          all = all && supported(config_of(dim, key, value, dtype, rotation));
    if (all) found.push_back(dim);
  }
  return found;
}

std::vector<std::string> widths() {
  std::vector<std::string> found;
  for (int bits = 1; bits <= 32; bits++)
    if (supported(config_of(128, bits, bits, TQ_F32, TQ_ROTATION_HADAMARD)))
      found.push_back(bits == 16 ? "16 (raw)" : std::to_string(bits));
  return found;
}

std::string grouped_widths() {
  std::vector<std::string> found;
  for (int bits = 1; bits <= 16; bits++) {
    tq_cache_config config = config_of(128, bits, bits, TQ_F32, TQ_ROTATION_HADAMARD);
    config.code_family = TQ_CODE_GROUPED;
    if (bits != tq::format::kRawBits && supported(config)) found.push_back(std::to_string(bits));
  }
  return joined(found);
}

// ---- CUDA: from the lists of compiled kernels, which need no device ----

std::vector<int> cuda_dims() {
  std::vector<int> found;
  for (int dim = tq::cuda::kDimStep; dim <= tq::format::kMaxDim; dim += tq::cuda::kDimStep)
    for (const auto& kernel : tq::cuda::attend::kGenericInstances)
      if (tq::format::is_head_dim(dim) && kernel.key == kernel.value &&
          kernel.key == tq::format::stored_dim(dim))
        found.push_back(dim);
  return found;
}

std::string cuda_mixed_dims() {
  std::vector<std::string> found;
  for (const auto& kernel : tq::cuda::attend::kGenericInstances)
    if (kernel.key != kernel.value)
      found.push_back(std::to_string(kernel.value) + " with keys of " + std::to_string(kernel.key));
  return joined(found);
}

// The widths of a table that have kernels of their own, and the dimensions that have the same ones.
template <typename Instances>
std::string kernels_of(const Instances& kernels) {
  std::map<std::string, std::vector<int>> dims_of;
  for (int dim : cuda_dims()) {
    std::set<std::string> pairs;
    for (const auto& kernel : kernels)
      if (kernel.stored == tq::format::stored_dim(dim))
        pairs.insert(std::to_string(kernel.key_bits) + "+" + std::to_string(kernel.value_bits));
    if (!pairs.empty()) dims_of[joined({pairs.begin(), pairs.end()})].push_back(dim);
  }
  std::string text;
  for (const auto& [pairs, dims] : dims_of)
    text += (text.empty() ? "" : "; ") + pairs + " (`head_dim` " + ranges(dims) + ")";
  return text;
}
std::string coded_kernels() {
  return kernels_of(tq::cuda::attend::kCodedInstances) +
         "; trellis: " + kernels_of(tq::cuda::attend::kTrellisInstances);
}

void print_row(const char* what, const std::string& cpu, const std::string& cuda) {
  std::printf("| %s | %s | %s |\n", what, cpu.c_str(), cuda.c_str());
}

void print_support() {
  const int capability = tq::cuda::kMinComputeCapability;
  std::printf("| | CPU | CUDA |\n|---|---|---|\n");
  print_row("devices", "x86-64, instruction set chosen at run time",
            "compute capability " + std::to_string(capability / 10) + "." + std::to_string(capability % 10) +
                " and later");
  print_row("`head_dim`", ranges(dims(TQ_ROTATION_HADAMARD)), ranges(cuda_dims()));
  print_row("`value_dim`", "any of these", "`head_dim`, both rounded up to 32; or " + cuda_mixed_dims());
  print_row("`key_bits`, `value_bits`", joined(widths()) + "; each for itself, per layer", "the same");
  print_row("`code_family`, of keys and of values",
            "scalar; prod (keys, 2, 3, 4 bits); grouped min/max (" + grouped_widths() +
                " bits); levels of the caller's; trellis (2, 3, 4 bits)",
            "the same");
  print_row("latent layers (`layer_kind`)", "512 + 64, or any two of these up to 576 in all", "512 + 64");
  print_row("decode kernels of their own", "-", coded_kernels());
  print_row("input and output", "float32, float16, bfloat16", "the same");
  print_row("rotation", "Hadamard; dense", "Hadamard");
  print_row(
      "attention",
      "decode, causal prefill, ragged batches, MHA, GQA, MQA, sliding window, soft-cap, sink logits, LSE",
      "the same; in graphs");
}

// One column for each pair of widths. False, with the library's text, if it refuses one.
bool print_sizes() {
  std::string rows[] = {"| bits, keys + values |", "|---|", "| bytes |", "| times smaller |"};
  for (const auto& pair :
       {std::pair<int, int>{2, 2}, {3, 2}, {3, 3}, {4, 3}, {4, 4}, {5, 5}, {6, 6}, {8, 8}}) {
    const tq_cache_config config = config_of(128, pair.first, pair.second, TQ_F16, TQ_ROTATION_HADAMARD);
    tq_cache_bytes bytes = {};
    bytes.struct_size = sizeof bytes;
    if (tq_cache_config_bytes(&config, &bytes) != TQ_OK) {
      std::fprintf(stderr, "%s\n", tq_last_error());
      return false;
    }
    char times[32];
    std::snprintf(times, sizeof times, " %.2f |",
                  static_cast<double>(bytes.fp16_token_bytes) / static_cast<double>(bytes.token_bytes));
    rows[0] += " " + std::to_string(pair.first) + " + " + std::to_string(pair.second) + " |";
    rows[1] += "---|";
    rows[2] += " " + std::to_string(bytes.token_bytes) + " |";
    rows[3] += times;
  }
  for (const std::string& row : rows) std::printf("%s\n", row.c_str());
  return true;
}

}  // namespace

int main() {
  print_support();
  std::printf(
      "\nBytes of one token and kv head, scales included (`tq_cache_config_bytes`), `head_dim` 128:\n\n");
  return print_sizes() ? 0 : 1;
}
