// SPDX-License-Identifier: Apache-2.0
// Defaults, reasons, geometry; see config.h. A check never stops the next one: who gets one value wrong often
// gets two.
#include "config.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>

#include "config_text.h"
#include "exact_new.h"
#include "host_block.h"
#include "struct_size.h"

namespace tq {
namespace {

constexpr Status kBad = Status::kInvalidArgument;
constexpr int32_t kMaxCount = 65536;  // layers, heads
constexpr int32_t kMaxThreads = 1024;
constexpr int32_t kMaxPageSize = 4096;
constexpr int64_t kMaxBatchTokens = INT_MAX / 2;
constexpr int64_t kSlidingBatchTokens = 2048;  // of a plan by default where layers slide: they hold them all
constexpr int64_t kMaxBytes = 1ll << 56;       // of one part of a cache: sums and offsets stay far from 2^63
// Room for exact copies that a cache has if nothing else is said: kRawTokens or max_tokens / kRawShare of
// sequences between plans, as far as there are so many, and kRawBatchTokens queries of a plan.
constexpr int64_t kRawTokens = 4096, kRawShare = 16, kRawBatchTokens = 8192;
constexpr uint64_t kKnownFlags = TQ_FLAG_NO_ZERO_ON_FREE | TQ_FLAG_NO_SCALE_SEARCH | TQ_FLAG_BATCH_INVARIANT |
                                 TQ_FLAG_STORE_ONCE | TQ_FLAG_EXACT_CHUNK;

void* default_alloc(void*, size_t bytes, size_t alignment, int32_t, int32_t) {
  void* pointer;
  return posix_memalign(&pointer, std::max(alignment, sizeof(void*)), bytes) == 0 ? pointer : nullptr;
}
void default_free(void*, void* pointer, size_t, int32_t, int32_t) { free(pointer); }

long long ll(int64_t x) { return static_cast<long long>(x); }

void check_dim(const char* name, int32_t value, ReasonList& reasons) {
  if (!format::is_head_dim(value))
    reasons.add(kBad, "%s = %d: must be %s", name, value, format::kHeadDimText);
}

void resolve_shapes(tq_cache_config& c, ReasonList& reasons) {
  check_count("num_layers", c.num_layers, 1, kMaxCount, reasons);
  // With layers a value of the cache's is only what layers without one of their own take.
  const int32_t least = c.layers ? 0 : 1;
  check_count("num_kv_heads", c.num_kv_heads, least, kMaxCount, reasons);
  check_count("num_q_heads", c.num_q_heads, least, kMaxCount, reasons);
  if (c.num_kv_heads >= 1 && c.num_q_heads >= 1 && c.num_q_heads % c.num_kv_heads != 0)
    reasons.add(kBad, "num_q_heads = %d: must be a multiple of num_kv_heads = %d", c.num_q_heads,
                c.num_kv_heads);
  if (c.layer_kind == 0) c.layer_kind = TQ_KEYS_VALUES;
  check_count("layer_kind", c.layer_kind, TQ_KEYS_VALUES, TQ_LATENT, reasons);
  if (c.reserved != 0) reasons.add(Status::kVersion, "reserved = %u: must be 0", c.reserved);
  if (c.layer_kind != TQ_LATENT) {  // else each layer's parts, config_layers.cpp
    if (c.head_dim != 0 || !c.layers) check_dim("head_dim", c.head_dim, reasons);
    if (c.value_dim != 0) check_dim("value_dim", c.value_dim, reasons);
  }
  if (c.io_dtype < TQ_F32 || c.io_dtype > TQ_BF16)
    reasons.add(kBad, "io_dtype = %d: must be TQ_F32 (1), TQ_F16 (2) or TQ_BF16 (3)", c.io_dtype);
}

void resolve_modes(tq_cache_config& c, ReasonList& reasons) {
  if (c.rotation == 0) c.rotation = TQ_ROTATION_HADAMARD;
  if (c.value_scale_rule == 0) c.value_scale_rule = TQ_SCALE_UNBIASED;
  check_count("rotation", c.rotation, TQ_ROTATION_HADAMARD, TQ_ROTATION_DENSE, reasons);
  check_count("first_layer", c.first_layer, 0, kMaxCount - 1, reasons);
  check_count("first_kv_head", c.first_kv_head, 0, kMaxFirstKvHead, reasons);
  check_count("value_scale_rule", c.value_scale_rule, TQ_SCALE_LS, TQ_SCALE_PAPER, reasons);
  if (c.flags & ~kKnownFlags)
    reasons.add(kBad, "flags = 0x%llx: unknown bits 0x%llx", static_cast<unsigned long long>(c.flags),
                static_cast<unsigned long long>(c.flags & ~kKnownFlags));
}

// sliding: some layer gives tokens back, which only a bounded plan makes worth while.
void resolve_tokens(tq_cache_config& c, bool sliding, ReasonList& reasons) {
  if (c.page_size == 0) c.page_size = 64;
  const bool page_ok = c.page_size >= format::kTileTokens && c.page_size <= kMaxPageSize &&
                       c.page_size % format::kTileTokens == 0;
  if (!page_ok)
    reasons.add(kBad, "page_size = %d: must be a multiple of %d, %d .. %d", c.page_size, format::kTileTokens,
                format::kTileTokens, kMaxPageSize);
  if (c.max_sequences == 0) c.max_sequences = 1;
  check_count("max_sequences", c.max_sequences, 1, INT_MAX - 1, reasons);
  const int64_t most_pages = INT_MAX - static_cast<int64_t>(std::max(c.max_sequences, 1));
  const auto fits = [&](int64_t tokens) {
    return tokens >= 1 && (!page_ok || (tokens - 1) / c.page_size < most_pages);
  };
  const bool tokens_ok = fits(c.max_tokens);
  if (!tokens_ok)
    reasons.add(kBad,
                "max_tokens = %lld: must be 1 or more, and fit 2^31 - 1 - max_sequences pages of %d tokens",
                ll(c.max_tokens), c.page_size);
  if (c.max_reserve_tokens == 0)
    c.max_reserve_tokens = c.max_tokens;
  else if (c.max_reserve_tokens < c.max_tokens || !fits(c.max_reserve_tokens))
    reasons.add(kBad,
                "max_reserve_tokens = %lld: must be 0 or at least max_tokens = %lld, and fit 2^31 - 1 - "
                "max_sequences pages of %d tokens",
                ll(c.max_reserve_tokens), ll(c.max_tokens), c.page_size);
  // And the tokens of a window that have no codes beside their copies; of any numbers, a refused one too.
  const auto with_uncoded = [&](int64_t tokens) {
    const int64_t uncoded = c.flags & TQ_FLAG_STORE_ONCE ? std::max(c.window_tokens, 0) : 0;
    return std::min(tokens, INT64_MAX - uncoded) + uncoded;
  };
  if (c.max_sequence_tokens == 0)
    c.max_sequence_tokens = with_uncoded(c.max_reserve_tokens);
  else
    check_count("max_sequence_tokens", c.max_sequence_tokens, 1,
                with_uncoded(std::max<int64_t>(c.max_reserve_tokens, 1)), reasons);
  if (c.max_batch_sequences == 0)
    c.max_batch_sequences = c.max_sequences;
  else
    check_count("max_batch_sequences", c.max_batch_sequences, 1, std::max(c.max_sequences, 1), reasons);
  const bool given = c.max_batch_tokens != 0;
  if (!given)
    c.max_batch_tokens = sliding ? std::min(c.max_tokens, kSlidingBatchTokens) : with_uncoded(c.max_tokens);
  if (given)
    check_count("max_batch_tokens", c.max_batch_tokens, 1, kMaxBatchTokens, reasons);
  else if (tokens_ok && c.max_batch_tokens > kMaxBatchTokens)
    reasons.add(
        kBad,
        "max_tokens = %lld: max_batch_tokens, which is max_tokens unless it is set, must be 1 .. %lld; "
        "set it to what one plan brings at most",
        ll(c.max_tokens), ll(kMaxBatchTokens));
}

void check_store_once(const tq_cache_config& c, bool sliding, ReasonList& reasons) {
  if (!(c.flags & TQ_FLAG_STORE_ONCE)) return;
  if (c.window_tokens <= 0)
    reasons.add(kBad, "flags = 0x%llx: TQ_FLAG_STORE_ONCE without a window: window_tokens = %d",
                static_cast<unsigned long long>(c.flags), c.window_tokens);
  if (sliding)
    reasons.add(Status::kNotSupported,
                "flags = 0x%llx: TQ_FLAG_STORE_ONCE: not with layers that have a sliding_window",
                static_cast<unsigned long long>(c.flags));
}

void resolve_exact_copies(tq_cache_config& c, ReasonList& reasons) {
  check_count("window_tokens", c.window_tokens, 0, INT_MAX, reasons);
  check_count("sink_tokens", c.sink_tokens, 0, INT_MAX, reasons);
  check_count("rollback_tokens", c.rollback_tokens, 0, INT_MAX, reasons);
  const int64_t sum = static_cast<int64_t>(c.window_tokens) + c.sink_tokens + c.rollback_tokens;
  if (c.window_tokens >= 0 && c.sink_tokens >= 0 && c.rollback_tokens >= 0 && sum > INT_MAX)
    reasons.add(kBad, "window_tokens + sink_tokens + rollback_tokens = %lld: must be at most %d", ll(sum),
                INT_MAX);
}

// Tokens in whole pages of exact copies.
int64_t whole_raw_pages(int64_t tokens) {
  return (tokens + format::kTileTokens - 1) / format::kTileTokens * format::kTileTokens;
}

// Room for exact copies. What a sequence holds between plans, wherever its pages begin, is `idle`; a plan
// brings at most one token more for each query.
void resolve_raw_tokens(tq_cache_config& c, ReasonList& reasons) {
  const int64_t longest = whole_raw_pages(c.max_sequence_tokens), sinks = whole_raw_pages(c.sink_tokens);
  const int64_t window = c.window_tokens == 0 ? 0
                                              : static_cast<int64_t>(c.window_tokens) + c.rollback_tokens +
                                                    2 * (format::kTileTokens - 1);
  const int64_t idle = std::min(longest, whole_raw_pages(sinks + window));
  if (idle == 0) {
    if (c.max_raw_tokens != 0)
      reasons.add(kBad, "max_raw_tokens = %lld: without window_tokens and sink_tokens it must be 0",
                  ll(c.max_raw_tokens));
    return;
  }
  if (c.max_raw_tokens == 0) {
    const int64_t queries = std::min<int64_t>(c.max_batch_tokens, kRawBatchTokens);
    const int64_t most = std::min(longest, whole_raw_pages(idle + c.max_batch_tokens));
    const int64_t between = std::min(checked_mul(idle, c.max_sequences, "max_raw_tokens"),
                                     std::max(kRawTokens, c.max_reserve_tokens / kRawShare));
    c.max_raw_tokens =
        std::min(checked_mul(most, c.max_sequences, "max_raw_tokens"), std::max(idle, between) + queries);
  }
  if (c.max_raw_tokens < idle)
    reasons.add(kBad,
                "max_raw_tokens = %lld: one sequence with window_tokens = %d, rollback_tokens = %d and "
                "sink_tokens = %d needs %lld",
                ll(c.max_raw_tokens), c.window_tokens, c.rollback_tokens, c.sink_tokens, ll(idle));
  else if (c.max_raw_tokens > static_cast<int64_t>(INT_MAX) * format::kTileTokens)
    reasons.add(kBad, "max_raw_tokens = %lld: must fit 2^31 - 1 pages of %d tokens", ll(c.max_raw_tokens),
                format::kTileTokens);
  else
    c.max_raw_tokens = whole_raw_pages(c.max_raw_tokens);
}

void resolve_threads_and_pool(tq_cache_config& c, ReasonList& reasons) {
  const int32_t threads = resolve_threads(c.num_threads, reasons);
  c.num_threads = c.device_type == TQ_DEVICE_CUDA ? 1 : threads;
  if (reinterpret_cast<uintptr_t>(c.pool) % 256 != 0)
    reasons.add(kBad, "pool = %p: must be aligned to 256 bytes", c.pool);
  if (!c.pool && c.pool_bytes != 0)
    reasons.add(kBad, "pool_bytes = %lld: without a pool it must be 0", ll(c.pool_bytes));
}

// Bits of every layer: the layer's own where given, else the common ones.
std::vector<int32_t> resolve_side_bits(const char* name, const char* layer_name, int32_t bits,
                                       const int32_t* layer_bits, int32_t num_layers, bool has_layers,
                                       ReasonList& reasons) {
  const ListText<8> list(format::kAllCodeBits);
  std::vector<int32_t> result(static_cast<size_t>(num_layers), bits);
  if (bits != 0 && !format::is_code_bits(bits))
    reasons.add(kBad, "%s = %d: must be one of %s", name, bits, list.text);
  if (bits == 0 && !layer_bits && !has_layers)
    reasons.add(kBad, "%s = 0: required unless layers or %s is given", name, layer_name);
  if (!layer_bits) return result;
  int32_t wrong = 0;
  for (int32_t layer = 0; layer < num_layers; layer++) {
    const int32_t own = layer_bits[layer];
    if (own != 0) result[static_cast<size_t>(layer)] = own;
    if (own != 0 ? format::is_code_bits(own) : bits != 0 || has_layers) continue;
    if (++wrong > kLayersNamed) continue;
    if (own != 0)
      reasons.add(kBad, "%s[%d] = %d: must be 0 or one of %s", layer_name, layer, own, list.text);
    else
      reasons.add(kBad, "%s[%d] = 0: stands for %s, which is 0 too", layer_name, layer, name);
  }
  if (wrong > kLayersNamed)
    reasons.add(kBad, "%s: %d more layers likewise", layer_name, wrong - kLayersNamed);
  return result;
}

}  // namespace

void check_count(const char* name, int64_t value, int64_t least, int64_t most, ReasonList& reasons) {
  if (value < least || value > most)
    reasons.add(kBad, "%s = %lld: must be %lld .. %lld", name, ll(value), ll(least), ll(most));
}

int32_t resolve_threads(int32_t num_threads, ReasonList& reasons) {
  check_count("num_threads", num_threads, 0, kMaxThreads, reasons);
  return num_threads != 0 ? num_threads : std::min(kMaxThreads, device_info(DeviceType::kCpu, 0).num_units);
}

HostOps read_allocator(const tq_allocator* caller, tq_allocator* own, ReasonList& reasons) {
  const HostOps standard = {nullptr, default_alloc, default_free};
  if (!caller) return standard;
  try {
    *own = read_struct(caller, "allocator");
  } catch (const Error& error) {
    reasons.add(error.status(), "%s", error.what());
    return standard;
  }
  if (own->reserved != 0) reasons.add(Status::kVersion, "allocator.reserved = %u: must be 0", own->reserved);
  if (!own->alloc != !own->free)
    reasons.add(kBad, "allocator.%s = NULL: give both callbacks or neither", own->alloc ? "free" : "alloc");
  return own->alloc && own->free ? HostOps{own->user, own->alloc, own->free} : standard;
}

void ResolvedConfig::resolve_bits(ReasonList& reasons) {
  const int32_t num_layers =
      config_.num_layers >= 1 && config_.num_layers <= kMaxCount ? config_.num_layers : 0;
  key_bits_ = resolve_side_bits("key_bits", "layer_key_bits", config_.key_bits, config_.layer_key_bits,
                                num_layers, config_.layers != nullptr, reasons);
  value_bits_ = resolve_side_bits("value_bits", "layer_value_bits", config_.value_bits,
                                  config_.layer_value_bits, num_layers, config_.layers != nullptr, reasons);
  config_.layer_key_bits = key_bits_.data();
  config_.layer_value_bits = value_bits_.data();
}

void ResolvedConfig::resolve_allocator(ReasonList& reasons) {
  host_ops_ = read_allocator(config_.allocator, &allocator_, reasons);
  const bool own = config_.allocator && host_ops_.alloc == allocator_.alloc;
  if (own || config_.device_type == TQ_DEVICE_CPU) backend_ops_ = host_ops_;
  if (config_.allocator) config_.allocator = &allocator_;
}

// A pool that grows in place needs memory that the operating system or the driver maps bit by bit.
void ResolvedConfig::check_reserve(ReasonList& reasons) const {
  if (config_.max_reserve_tokens <= config_.max_tokens) return;
  if (config_.pool)
    reasons.add(Status::kNotSupported,
                "max_reserve_tokens = %lld: a pool of the caller's cannot grow; leave pool NULL",
                ll(config_.max_reserve_tokens));
  if (config_.allocator && allocator_.alloc)
    reasons.add(Status::kNotSupported,
                "max_reserve_tokens = %lld: memory from allocator callbacks cannot grow in place; leave "
                "allocator NULL",
                ll(config_.max_reserve_tokens));
}

// One page more than full ones for every sequence: its tail. So the tokens fit, however they are spread. A
// sliding group needs no more than its window for every sequence (wherever it begins and ends in a page, and
// one page for the copy of a shared one), and the new tokens of a plan.
int64_t ResolvedConfig::pool_pages(int32_t group, int64_t tokens) const {
  const PageGroup& g = geometry_.groups[group];
  const int64_t all = (tokens - 1) / g.page_size + 1 + config_.max_sequences;
  if (g.window == kAllTokens) return all;
  const int64_t kept = g.pages_for(g.window + g.rollback) + 3;
  return std::min(all, kept * config_.max_sequences + g.pages_for(config_.max_batch_tokens));
}

void ResolvedConfig::set_max_tokens(int64_t tokens) noexcept {
  config_.max_tokens = tokens;
  for (int32_t group = 0; group < geometry_.num_code_groups(); group++)
    geometry_.groups[group].num_pages = pool_pages(group, tokens);
}

void ResolvedConfig::build_geometry() {
  const tq_cache_config& c = config_;
  Geometry& g = geometry_;
  g.num_layers = c.num_layers;
  g.io_dtype = static_cast<DataType>(c.io_dtype);
  g.rotation_seed = c.rotation_seed;
  g.first_layer = c.first_layer;
  g.key_rule = static_cast<format::ScaleRule>(c.key_scale_rule);
  g.value_rule = static_cast<format::ScaleRule>(c.value_scale_rule);
  g.search = !(c.flags & TQ_FLAG_NO_SCALE_SEARCH);
  g.sketch = static_cast<format::SketchKind>(c.sketch);
  g.page_size = c.page_size;
  build_groups();
  const bool may_grow = c.max_reserve_tokens > c.max_tokens;
  for (int32_t group = 0; group < g.num_groups; group++) {
    g.groups[group].num_pages = pool_pages(group, c.max_tokens);
    g.groups[group].reserve_pages = may_grow ? pool_pages(group, c.max_reserve_tokens) : 0;
  }
  g.max_sequences = c.max_sequences;
  g.max_batch_sequences = c.max_batch_sequences;
  g.max_batch_tokens = c.max_batch_tokens;
  g.window_tokens = c.window_tokens;
  g.sink_tokens = c.sink_tokens;
  g.raw_group = -1;
  g.store_once = c.flags & TQ_FLAG_STORE_ONCE;
  if (c.max_raw_tokens > 0) {
    g.raw_group = g.num_groups++;
    PageGroup& raw = g.groups[g.raw_group];
    raw = PageGroup{format::kTileTokens, c.max_raw_tokens / format::kTileTokens,
                    (c.max_sequence_tokens - 1) / format::kTileTokens + 1};
    raw.window = c.window_tokens;
    raw.sink_tokens = c.sink_tokens;
    raw.rollback = c.rollback_tokens;
    raw.exact = true;
  }
  g.num_threads = c.num_threads;
  g.device_id = c.device_id;
  g.zero_on_free = !(c.flags & TQ_FLAG_NO_ZERO_ON_FREE);
  g.batch_invariant = c.flags & TQ_FLAG_BATCH_INVARIANT;
  g.layers = layers_.data();
}

// Everything that backends multiply without looking stays below 2^56 bytes.
void ResolvedConfig::check_sizes(ReasonList& reasons) const {
  const Geometry& g = geometry_;
  try {
    int64_t pages = 0;
    for (int32_t i = 0; i < g.num_code_groups(); i++)
      pages = checked_add(pages, checked_mul(g.group_page_bytes(i), g.groups[i].most_pages(), "max_tokens"),
                          "max_tokens");
    if (pages > kMaxBytes)
      reasons.add(kBad, "max_tokens = %lld: %lld bytes of pages, more than 2^56", ll(config_.max_tokens),
                  ll(pages));
    const int64_t raw = g.has_exact() ? checked_mul(g.group_page_bytes(g.raw_group),
                                                    g.groups[g.raw_group].num_pages, "max_raw_tokens")
                                      : 0;
    if (raw > kMaxBytes)
      reasons.add(kBad, "max_raw_tokens = %lld: %lld bytes of exact copies, more than 2^56",
                  ll(config_.max_raw_tokens), ll(raw));
    const int64_t table = checked_mul(g.max_sequences, g.groups[0].max_sequence_pages, "max_sequence_tokens");
    if (table > kMaxBytes / 4)
      reasons.add(kBad, "max_sequence_tokens = %lld: %lld page table entries",
                  ll(config_.max_sequence_tokens), ll(table));
  } catch (const Error& error) {
    reasons.add(error.status(), "%s", error.what());
  }
}

ResolvedConfig::ResolvedConfig(const tq_cache_config* caller)
    : config_(read_struct(caller, "config")),
      geometry_{},
      host_ops_{},
      backend_ops_{},
      key_codebook_{},
      value_codebook_{},
      allocator_{} {
  ReasonList reasons;
  tq_cache_config& c = config_;
  if (c.device_type == 0) c.device_type = TQ_DEVICE_CPU;
  const bool device_known = c.device_type == TQ_DEVICE_CPU || c.device_type == TQ_DEVICE_CUDA;
  if (!device_known)
    reasons.add(kBad, "device_type = %d: must be TQ_DEVICE_CPU (1) or TQ_DEVICE_CUDA (2)", c.device_type);
  resolve_shapes(c, reasons);
  resolve_bits(reasons);
  resolve_modes(c, reasons);
  resolve_families(reasons);
  resolve_layers(reasons);
  resolve_bands(reasons);
  resolve_prod(reasons);
  resolve_codebooks(reasons);
  resolve_levels(reasons);
  resolve_tokens(c, any_sliding(), reasons);
  resolve_exact_copies(c, reasons);
  check_store_once(c, any_sliding(), reasons);
  resolve_threads_and_pool(c, reasons);
  resolve_allocator(reasons);
  check_reserve(reasons);
  if (reasons.empty()) resolve_raw_tokens(c, reasons);
  const bool well_formed = reasons.empty();
  if (device_known) check_device(device(), c.device_id, reasons);
  if (well_formed) {
    build_layers(reasons);
    ExactNew::check(c, layers_, reasons);
    if (reasons.empty()) {
      build_geometry();
      check_sizes(reasons);
    }
    if (reasons.empty()) check_backend(device(), geometry_, reasons);
  }
  if (reasons.empty() && c.pool) {
    const int64_t needed = backend_bytes(device(), geometry_).pages;
    if (c.pool_bytes < needed)
      reasons.add(kBad, "pool_bytes = %lld: the pages need %lld", ll(c.pool_bytes), ll(needed));
  }
  if (!reasons.empty()) throw Error(reasons.status(), "%s", reasons.text());
}

}  // namespace tq
