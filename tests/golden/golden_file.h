// SPDX-License-Identifier: Apache-2.0
// The golden files as typed tensors (README.md beside this file says what is in them), for the C++ tests that
// must agree with them.
#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/safetensors.h"
#include "format/encode.h"

namespace tq::golden {

// encode_d*.safetensors
constexpr int kGoldenDims[] = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512, 576, 40, 72, 100};

class GoldenFile {
 public:
  explicit GoldenFile(const std::string& name) : file_(std::string(TQ_GOLDEN_DIR) + "/" + name) {}

  bool has(const std::string& name) const { return file_.has(name); }
  const auto& tensors() const { return file_.tensors(); }
  const auto& metadata() const { return file_.metadata(); }
  nlohmann::json parameters(const std::string& key) const {
    return nlohmann::json::parse(file_.metadata().at(key));
  }

  std::vector<uint8_t> bytes(const std::string& name) { return file_.read_bytes(name); }

  template <typename T>
  std::vector<T> read(const std::string& name) {
    const std::vector<uint8_t> raw = bytes(name);
    EXPECT_EQ(raw.size() / sizeof(T), file_.info(name).elements) << name << " is " << file_.info(name).dtype;
    std::vector<T> values(raw.size() / sizeof(T));
    memcpy(values.data(), raw.data(), raw.size());
    return values;
  }

 private:
  cli::SafetensorsFile file_;
};

// A coder with its tables; parameters as in the metadata of encode_d*.safetensors.
class Coder {
 public:
  Coder(const nlohmann::json& parameters, format::Kind kind, int bits, const std::string& variant,
        const std::vector<float>& centre)
      : centre_(centre) {
    const int dim = parameters.at("head_dim"), stored = format::stored_dim(dim);
    const uint64_t base =
        format::stream_base(parameters.at("seed"), parameters.at("layer"), parameters.at("kv_head"), kind);
    for (int w = 0; w < format::sign_words(stored); w++) signs_.push_back(format::stream_word(base, w));
    if (variant == "dense") {
      dense_.resize(static_cast<size_t>(stored) * stored);
      std::vector<double> work(dense_.size() + stored);
      format::dense_matrix(base, stored, dense_.data(), work.data());
    }
    const format::ScaleRule rule = variant == "norm"              ? format::ScaleRule::kNorm
                                   : variant == "paper"           ? format::ScaleRule::kPaper
                                   : kind == format::Kind::kValue ? format::ScaleRule::kUnbiased
                                                                  : format::ScaleRule::kLs;
    coder_ = format::VectorCoder{dim,
                                 stored,
                                 variant == "dense" ? format::Rotation::kDense : format::Rotation::kHadamard,
                                 signs_.data(),
                                 dense_.empty() ? nullptr : dense_.data(),
                                 centre_.empty() ? nullptr : centre_.data(),
                                 rule,
                                 variant != "nosearch",
                                 format::builtin_codebook(dim, bits)};
  }
  Coder(const Coder&) = delete;
  Coder& operator=(const Coder&) = delete;

  const format::VectorCoder& operator*() const { return coder_; }
  const std::vector<float>& dense() const { return dense_; }

 private:
  std::vector<uint64_t> signs_;
  std::vector<float> dense_, centre_;
  format::VectorCoder coder_;
};

// Index of the first element that differs in its bits, or -1.
template <typename T>
int64_t first_difference(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return static_cast<int64_t>(a.size() < b.size() ? a.size() : b.size());
  for (size_t i = 0; i < a.size(); i++)
    if (memcmp(&a[i], &b[i], sizeof(T)) != 0) return static_cast<int64_t>(i);
  return -1;
}

}  // namespace tq::golden
