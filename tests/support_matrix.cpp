// SPDX-License-Identifier: Apache-2.0
// Prints what this build supports as Markdown, by asking tq_cache_config_check and tq_cache_config_bytes
// about every combination: the README's table cannot promise what the code refuses.
#include <cstdio>
#include <string>
#include <vector>

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

// Dimensions that work with every pair of widths and every dtype at a rotation.
std::vector<std::string> dims(int rotation) {
  std::vector<std::string> found;
  for (int dim = 1; dim <= 1024; dim++) {
    bool all = true;
    for (int key : tq::format::kCodeBits)
      for (int value : tq::format::kCodeBits)
        for (int dtype : {TQ_F32, TQ_F16, TQ_BF16})
          all = all && supported(config_of(dim, key, value, dtype, rotation));
    if (all) found.push_back(std::to_string(dim));
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

}  // namespace

int main() {
  std::printf("| | CPU |\n|---|---|\n");
  std::printf("| `head_dim`, `value_dim` (independent) | %s |\n", joined(dims(TQ_ROTATION_HADAMARD)).c_str());
  std::printf("| `key_bits`, `value_bits` (independent, per layer) | %s |\n", joined(widths()).c_str());
  std::printf("| input and output types | float32, float16, bfloat16 |\n");
  std::printf("| rotation | Hadamard; dense for `head_dim` %s |\n", joined(dims(TQ_ROTATION_DENSE)).c_str());
  std::printf(
      "| attention | decode and causal prefill, ragged batches, MHA, GQA, MQA, sliding window, soft-cap, "
      "sink logits, LSE |\n\n");
  std::printf(
      "Bytes of one token, all layers and heads alike, scales included (`tq_cache_config_bytes`), `head_dim` "
      "128:\n\n");
  std::printf("| bits, keys + values | bytes per head | compression against float16 |\n|---|---|---|\n");
  for (const auto& pair :
       {std::pair<int, int>{2, 2}, {3, 2}, {3, 3}, {4, 3}, {4, 4}, {5, 5}, {6, 6}, {8, 8}, {16, 4}}) {
    const tq_cache_config config = config_of(128, pair.first, pair.second, TQ_F16, TQ_ROTATION_HADAMARD);
    tq_cache_bytes bytes = {};
    bytes.struct_size = sizeof bytes;
    if (tq_cache_config_bytes(&config, &bytes) != TQ_OK) {
      std::fprintf(stderr, "%s\n", tq_last_error());
      return 1;
    }
    std::printf("| %d + %d | %lld | %.2f |\n", pair.first, pair.second,
                static_cast<long long>(bytes.token_bytes),
                static_cast<double>(bytes.fp16_token_bytes) / static_cast<double>(bytes.token_bytes));
  }
  return 0;
}
