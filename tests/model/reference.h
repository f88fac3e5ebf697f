// SPDX-License-Identifier: Apache-2.0
// The plain model of a cache: a sequence is a list of tokens and nothing else. What a token is worth
// (decoded, exact) follows from its input alone by the scalar format; attention is float64. No pages, no
// sharing: those are what the model test checks. Of plans only what they keep of the exact copies.
#pragma once
#include <memory>
#include <random>
#include <vector>

#include "format/encode.h"
#include "masks.h"
#include "requests.h"
#include "tqkv.h"

namespace tq {
namespace model {

// One token's keys and values: [layer][kv head][key dims, value dims], all floats.
struct Token {
  std::vector<float> input;    // as the caller's type holds it
  std::vector<float> decoded;  // what codes (or a raw side) give back
  std::vector<float> exact;    // what an exact copy gives back
  uint64_t noticed;            // TQ_NOTICED_*
};

struct Sequence {
  std::vector<std::shared_ptr<const Token>> tokens;
  int64_t exact_from = 0;  // tokens from here on have exact copies,
  int64_t sink_end = 0;    // and so have those before this one
  int last_batch = -1;     // that planned it
  uint64_t noticed = 0;

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
};

class Reference {
 public:
  // config: resolved. centres [layer][kv head][head_dim + value_dim], or empty.
  Reference(const tq_cache_config& config, std::vector<float> centres);

  int64_t token_floats() const {
    return static_cast<int64_t>(config_.num_layers) * config_.num_kv_heads * vector_floats();
  }
  int vector_floats() const { return config_.head_dim + config_.value_dim; }
  std::shared_ptr<const Token> make_token(std::vector<float> input) const;
  void append(Sequence* sequence, const std::vector<std::shared_ptr<const Token>>& tokens) const;
  // A plan has brought the sequence to this length, with this many queries at its end. Without any: it left
  // one.
  void plan(Sequence* sequence, int64_t length, int64_t queries) const;
  void truncate(Sequence* sequence, int64_t length) const;
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
  format::VectorCoder coder(int layer, int head, Kind kind) const;
  void make_side(const float* input, int layer, int head, Kind kind, float* decoded, float* exact,
                 uint64_t* noticed) const;

  tq_cache_config config_;
  std::vector<float> centres_;
  std::vector<uint64_t> signs_;            // [layer][head][kind][16 words]
  std::vector<std::vector<float>> dense_;  // [layer][head][kind], dense rotation only
  std::vector<format::Codebook> books_;    // [layer][kind]
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
