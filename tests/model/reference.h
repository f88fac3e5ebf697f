// SPDX-License-Identifier: Apache-2.0
// The plain model of a cache: a sequence is a list of tokens and nothing else. What a token is worth
// (decoded, exact) follows from its input alone by the scalar format; attention is float64. No pages, no
// sharing: those are what the model test checks. Of plans only what they keep of the exact copies.
#pragma once
#include <map>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "format/row.h"
#include "masks.h"
#include "requests.h"
#include "tqkv.h"

namespace tq {
namespace model {

// One token's keys and values: [layer that has tokens][kv head][key dims, value dims], all floats.
struct Token {
  std::vector<float> input;    // as the caller's type holds it
  std::vector<float> decoded;  // what codes (or a raw side) give back
  std::vector<float> exact;    // what an exact copy gives back
  uint64_t noticed;            // TQ_NOTICED_*
};

struct Sequence {
  std::vector<std::shared_ptr<const Token>> tokens;
  int64_t exact_from = 0;                // tokens from here on have exact copies,
  int64_t sink_end = 0;                  // and so have those before this one
  int64_t coded = 0;                     // tokens before it have codes
  std::map<int32_t, int64_t> kept_from;  // by sliding window: the first token that its layers keep
  int last_batch = -1;                   // that planned it
  uint64_t noticed = 0;

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
};

class Reference {
 public:
  // config: resolved, its layers alive as long as this. centres: floats of a token, or empty.
  Reference(const tq_cache_config& config, std::vector<float> centres);

  int64_t token_floats() const { return token_floats_; }
  // Where a layer's keys of a kv head begin in a token, its values follow.
  size_t place(int layer, int head) const {
    const tq_layer_config& l = config_.layers[layer];
    return static_cast<size_t>(layers_[static_cast<size_t>(layer)].floats +
                               static_cast<int64_t>(head) * (l.head_dim + l.value_dim));
  }
  std::shared_ptr<const Token> make_token(std::vector<float> input) const;
  void append(Sequence* sequence, const std::vector<std::shared_ptr<const Token>>& tokens) const;
  // A plan has brought the sequence to this length, with this many queries at its end. Without any: it left
  // one. A copy keeps what a plan without queries would, whatever its source has in front.
  void plan(Sequence* sequence, int64_t length, int64_t queries) const;
  // Whether the sliding layers keep what the first of these queries sees, what the next query sees after a
  // truncate to this length, and what it sees once these tokens are taken out.
  bool admits(const Sequence& sequence, int64_t new_tokens, int64_t queries) const;
  bool admits_length(const Sequence& sequence, int64_t length) const;
  bool admits_selection(const Sequence& sequence, const std::vector<int64_t>& positions) const;
  // The first token that a layer keeps.
  int64_t kept_from(const Sequence& sequence, int layer) const;
  void truncate(Sequence* sequence, int64_t length) const;
  // Whether there was anything to give up.
  bool flush(Sequence* sequence) const;
  // Only these tokens stay.
  void select(Sequence* sequence, const std::vector<int64_t>& positions) const;
  // Tokens in pages of 32 that hold its exact copies.
  int64_t raw_tokens(const Sequence& sequence) const;
  // TQ_NOTICED_* of it.
  uint64_t flags(const Sequence& sequence) const;
  // Whether a query at `position` reads token `index` exactly; a read is what the last token's query sees.
  bool is_exact(const Sequence& sequence, int64_t index, int64_t position) const;
  // Keys of one token as a query at `position` sees them; its values follow.
  const float* key(const Sequence& sequence, int layer, int head, int64_t index, int64_t position) const;

  struct Query {
    const float* q;  // [head_dim]
    int layer, q_head;
    int64_t position;
    int64_t old_length;  // tokens before the plan
    int64_t end;         // no token is seen from here on
    int64_t sliding_window;
    int64_t row;  // of q: of the masks
    const test::Masks* masks;
    double scale, softcap;
    const float* sink_logit;  // or null
  };
  struct Result {
    std::vector<double> out;
    double lse;
    double out_tolerance, lse_tolerance;
  };
  Result attend(const Sequence& sequence, const Query& query) const;

 private:
  bool stores_once() const { return config_.flags & TQ_FLAG_STORE_ONCE; }
  struct Place {
    int64_t floats, coder;  // where the layer's part of a token and of the coders begins
  };
  size_t coder_index(int layer, int head, Kind kind) const {
    return static_cast<size_t>(layers_[static_cast<size_t>(layer)].coder + 2 * head + static_cast<int>(kind));
  }
  format::VectorCoder coder(int layer, int head, Kind kind) const;
  // reference_rows.cpp: sides of prod and levels codes.
  void make_rows(int layer, int head, Kind kind);
  bool make_row(const float* input, int layer, int head, Kind kind, float* decoded) const;
  // Of keys in bands.
  bool make_bands(const float* input, int layer, int head, float* decoded) const;
  void make_side(const float* input, int layer, int head, Kind kind, float* decoded, float* exact,
                 uint64_t* noticed) const;

  tq_cache_config config_;
  int64_t token_floats_ = 0;
  std::vector<Place> layers_;  // of a layer that shares tokens: those of the other
  std::vector<float> centres_;
  std::vector<uint64_t> signs_;            // [coder][16 words]
  std::vector<std::vector<float>> dense_;  // [coder], dense rotation only
  std::vector<format::Codebook> books_;    // [layer][kind]
  // [coder] of sides by rows: levels, and the sketch with its signs (two rotations) or its matrix
  struct Rows {
    std::unique_ptr<format::LevelTable> levels;
    std::vector<uint64_t> signs;
    std::vector<float> matrix;
    format::Sketch sketch = {};
    float gain = 0;
  };
  std::vector<Rows> rows_;
  std::set<int32_t> windows_;  // of the layers that have tokens and give some back
};

// Fails if a row is not what is expected.
void expect_near(const Reference::Result& expected, const float* out, float lse,
                 const Reference::Query& query, const Sequence& sequence);

// A float as the type holds it, and back.
float round_to(tq_dtype type, float x);
// The bits of an exactly representable value, as memory of the type.
void store_as(tq_dtype type, float x, void* memory, int64_t index);
float load_as(tq_dtype type, const void* memory, int64_t index);

}  // namespace model
}  // namespace tq
