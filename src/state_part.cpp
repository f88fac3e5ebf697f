// SPDX-License-Identifier: Apache-2.0
// Parts of sequences: checked, sized, described; see state_part.h.
#include "state_part.h"

#include "host_block.h"
#include "state_fields.h"
#include "state_header.h"

namespace tq {
namespace {

constexpr Status kBad = Status::kInvalidArgument;

long long ll(int64_t x) { return static_cast<long long>(x); }

// first .. first + count - 1 must lie in least .. least + most - 1.
void check_range(const char* first_name, const char* count_name, int64_t first, int64_t count, int64_t least,
                 int64_t most) {
  TQ_CHECK(first >= least && first < least + most, kBad, "state.%s = %lld: the cache has %lld .. %lld",
           first_name, ll(first), ll(least), ll(least + most - 1));
  TQ_CHECK(count > 0 && count <= least + most - first, kBad,
           "state.%s = %lld: the cache has %lld from %lld on", count_name, ll(count),
           ll(least + most - first), ll(first));
}

// Names all kv heads of the part's layers, if these have the same ones.
void name_heads(const Geometry& g, StatePart* part) {
  const LayerGeometry* named = nullptr;
  for (int32_t layer = part->first_layer; layer < part->first_layer + part->num_layers; layer++) {
    const LayerGeometry& l = g.layers[layer];
    if (!g.stores(layer)) continue;
    if (named && (named->num_kv_heads != l.num_kv_heads || named->first_kv_head != l.first_kv_head)) return;
    named = &l;
  }
  if (named) part->first_head = named->first_kv_head, part->num_heads = named->num_kv_heads;
}

}  // namespace

StatePart part_of_state(const Geometry& g, const tq_state& state, int64_t length) {
  StatePart part = {};
  part.num_layers = g.num_layers;
  if (state.num_layers != 0) {
    check_range("first_layer", "num_layers", state.first_layer, state.num_layers, g.first_layer,
                g.num_layers);
    part.first_layer = state.first_layer - g.first_layer, part.num_layers = state.num_layers;
  }
  for (int32_t i = part.first_layer; state.num_kv_heads != 0 && i < part.first_layer + part.num_layers; i++)
    if (g.stores(i))
      check_range("first_kv_head", "num_kv_heads", state.first_kv_head, state.num_kv_heads,
                  g.layers[i].first_kv_head, g.layers[i].num_kv_heads);
  part.first_head = state.num_kv_heads == 0 ? 0 : state.first_kv_head;
  part.num_heads = state.num_kv_heads;
  if (state.num_kv_heads == 0) name_heads(g, &part);
  TQ_CHECK(state.first_token >= 0 && state.first_token <= length, kBad,
           "state.first_token = %lld: the sequence has %lld tokens", ll(state.first_token), ll(length));
  TQ_CHECK(state.num_tokens >= 0 && state.num_tokens <= length - state.first_token, kBad,
           "state.num_tokens = %lld: the sequence has %lld tokens from first_token = %lld on",
           ll(state.num_tokens), ll(length - state.first_token), ll(state.first_token));
  part.first_token = state.first_token;
  part.num_tokens = state.num_tokens == 0 ? length - state.first_token : state.num_tokens;
  return part;
}

void describe_part(const Identity& identity, const StatePart& part, tq_state* state) {
  const Geometry& g = *identity.geometry;
  state->first_layer = g.first_layer + part.first_layer;
  state->num_layers = part.num_layers;
  state->first_kv_head = part.first_head;
  state->num_kv_heads = part.num_heads;
  state->first_token = part.first_token;
  state->num_tokens = part.num_tokens;
  state->io_dtype = part.exact_type;
  state->exact_sinks = part.exact_sinks;
  state->exact_first = part.exact_first;
  state->rollback_tokens = part.rollback;
  state->identity = part_identity(identity, part);
  part_fields(identity, part, state->fields);
  state->bytes = part_bytes(g, part);
}

int64_t first_code(const Geometry& g, const StatePart& part, int32_t layer) {
  const int64_t window = g.window_of(layer);
  if (window == kAllTokens) return part.first_token;
  return std::max(part.first_token, std::min(part.end(), part.end() - window - part.rollback));
}

int64_t part_bytes(const Geometry& g, const StatePart& part) {
  int64_t bytes = 0;
  for_each_part_run(g, part, [&](const PartRun& run) {
    const int64_t heads = checked_mul(run.move.heads, run.move.tile_bytes(), "state.bytes");
    bytes = checked_add(bytes, checked_mul(run.move.tiles, heads, "state.bytes"), "state.bytes");
  });
  return bytes;
}

}  // namespace tq
