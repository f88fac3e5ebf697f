// SPDX-License-Identifier: Apache-2.0
// What prompts say of a model's keys and values (tqkv.h section 11): sums of what was fed, tokens held out of
// them, and from both for each layer a list of codes with their bytes and their error on the held-out tokens.
// choose picks of these lists.
//
// Why held-out tokens are coded rather than estimated: the estimate, distortion times the energies of keys
// and queries, takes coordinates to be independent, and picks the order and the widths; what it promises is
// then measured with the format's own codes.
#pragma once
#include <float.h>
#include <math.h>

#include <algorithm>
#include <vector>

#include "backend.h"
#include "gate.h"
#include "key_matrix.h"
#include "requests.h"
#include "state_stream.h"
#include "tqkv.h"

namespace tq {

// What is measured of keys: these widths of all coordinates, and bands of every half bit between these rates.
constexpr int32_t kUniformBits[] = {2, 3, 4}, kLeastHalfBits = 4, kMostHalfBits = 8;

// The share of the error on held-out tokens down to which bands must bring it to be taken; found matrices
// too.
constexpr double kLeastGain = .98;

// A way to store one side of a layer.
struct SideChoice {
  int32_t bits = 0;        // of all coordinates; 0: in bands
  uint32_t bands = 0;      // widths, four bits each
  int32_t half_bits = 0;   // twice the bits of a coordinate
  int32_t head_bytes = 0;  // of a token and kv head, scales included
  double error = 0;        // on the held-out tokens; of a float's precision, as it is saved
};

// A float, the largest for what is beyond: errors of tokens of nearly that size are, or are no number.
inline float bounded(double x) { return x < static_cast<double>(FLT_MAX) ? static_cast<float>(x) : FLT_MAX; }

inline bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return isfinite(x); });
}

// Defaults filled in; throws Error whose text holds every reason.
tq_calibration_config resolved(tq_calibration_config config);

class Calibration {
 public:
  explicit Calibration(const tq_calibration_config* config);
  // What save wrote.
  explicit Calibration(const tq_io& io);
  static void destroy(Calibration* calibration);

  // reader: of the device whose memory q, k and v are; null: the host's.
  void feed(int32_t layer, int64_t count, const void* q, const void* k, const void* v,
            DeviceReader* reader = nullptr);
  // Of the longest piece of an array that a reader is asked for.
  int64_t piece_bytes() const;
  // Before the layer's first tokens.
  void set_key_matrix(int32_t layer, const float* matrix);
  void choose(const tq_calibration_goal& goal, tq_layer_config* layers, int32_t num_layers,
              tq_calibration_result* result);
  void copy_centres(int32_t layer, float* key, float* value);
  // Whether the layer has any. matrix: null, or where they go.
  bool copy_key_matrix(int32_t layer, float* matrix);
  const tq_calibration_config& config() const { return config_; }
  // visit(layer, key centres, value centres, key matrices or null)
  template <typename Visit>
  void for_each_centre(const Visit& visit) {
    const Gate::Use use(gate_, true);
    measure();
    for (int32_t i = 0; i < config_.num_layers; i++) {
      const Measured& layer = measured_[static_cast<size_t>(i)];
      visit(i, given_key_centre(i).data(), layer.value_centre.data(), given_matrix(i));
    }
  }
  void save(const tq_io& io);

 private:
  // Of one layer as it is fed. Sums are [num_kv_heads][dim]; rows of held-out tokens dense.
  struct Fed {
    int64_t tokens = 0, counted = 0, held_out_seen = 0;
    std::vector<double> key, key_square, query_square, value;
    // With turn_keys, of layers without given matrices: second moments [num_kv_heads][head_dim][head_dim].
    std::vector<double> key_moment, query_moment;
    std::vector<float> held_q, held_k, held_v;
    std::vector<float> key_lengths;  // some tokens', for the median
  };
  // And what follows from it.
  struct Measured {
    float key_length = 0;                         // median
    std::vector<float> key_centre, value_centre;  // [num_kv_heads][dim]
    std::vector<int32_t> order;                   // [num_kv_heads][head_dim]
    std::vector<SideChoice> keys, values;
  };

  // An array of a call: q, k or v.
  struct Array {
    const char* name;
    const void* from;
    int64_t row;  // numbers
  };
  int64_t longest_row() const;  // bytes
  int64_t piece_tokens() const;
  void load_rows(int32_t layer, const void* const* at, int64_t token, std::vector<float> (&rows)[3]) const;
  void add_token(Fed& fed, const std::vector<float> (&rows)[3]) const;
  void add_moments(Fed& fed, const std::vector<float>& q, const std::vector<float>& k) const;
  // A layer's matrices, given or found; empty: it has none.
  const KeyMatrix& matrix_of(int32_t layer) const;
  // As the cache takes them: centres of keys as they come, and of a layer that has one its matrix.
  static std::vector<float> before_turning(const KeyMatrix& matrix, std::vector<float> centre);
  std::vector<float> given_key_centre(int32_t layer) const;
  const float* given_matrix(int32_t layer) const;

  int32_t num_bands() const { return (config_.head_dim + 31) / 32; }
  void measure();
  void measure_layer(int32_t layer);
  // Matrices that suit the moments, empty where there are none; what was fed as they turn it.
  KeyMatrix find_matrix(int32_t layer) const;
  Fed turned(const Fed& fed, const KeyMatrix& matrix) const;
  // matrix: that turned what was fed, empty: none did.
  void measure_fed(int32_t layer, const Fed& fed, const KeyMatrix& matrix, Measured* to) const;
  void measure_sums(const Fed& fed, Measured* to) const;
  void judge_centres(int32_t layer, const Fed& fed, const KeyMatrix& matrix, Measured* to) const;
  void measure_keys(int32_t layer, const Fed& fed, Measured* to) const;
  void measure_values(int32_t layer, const Fed& fed, Measured* to) const;
  template <typename Back>
  double key_error(const Fed& fed, const Back& back) const;
  double logit_error(const Fed& fed, int32_t head, const std::vector<float>& differences) const;
  const SideChoice& uniform(const std::vector<SideChoice>& choices, int32_t bits) const;
  const SideChoice& of_rate(const std::vector<SideChoice>& choices, int32_t half_bits) const;
  void fill_layer(int32_t layer, const SideChoice& key, const SideChoice& value, tq_layer_config* to);

  tq_calibration_config config_;
  Gate gate_{"calibration", false};
  std::vector<Fed> fed_;  // empty once loaded
  std::vector<Measured> measured_;
  // [num_layers]; empty ones: none. Given: what is fed is turned by them. Found: with turn_keys, together
  // with measured_.
  std::vector<KeyMatrix> matrices_, found_;
  bool current_ = false;  // measured_ follows from fed_
  // What the last choose gave out: of each layer.
  struct GivenBands {
    std::vector<int32_t> bits;
    tq_key_bands bands;
  };
  std::vector<GivenBands> given_;
};

}  // namespace tq
