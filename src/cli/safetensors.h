// SPDX-License-Identifier: Apache-2.0
//
// Reader of safetensors files (https://github.com/huggingface/safetensors): 8 bytes header length, a JSON
// header, the data. Everything in the file is taken as hostile: lengths are capped before they are used,
// products are checked for overflow, every tensor must lie inside the data, its byte range must be dtype x
// shape exactly, and the ranges must tile the data without overlap or hole (the format demands it). Values
// are read on demand, so that a capture larger than memory can be walked layer by layer. No dependence on the
// rest of the tool: the golden tests link this file alone.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace tq::cli {

// What is wrong with the file; the text starts with its path.
class SafetensorsError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct TensorInfo {
  std::string dtype;           // as in the file: "F16", "BF16", "F32", "I8", ...
  std::vector<int64_t> shape;  // each >= 0
  uint64_t offset = 0;         // of the first byte in the file
  uint64_t bytes = 0;
  uint64_t elements = 0;
};

// "[2, 1024, 128]"
std::string shape_text(const std::vector<int64_t>& shape);

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool has(const std::string& name) const { return tensors_.count(name) != 0; }
  const TensorInfo& info(const std::string& name) const;  // throws if there is none

  std::vector<uint8_t> read_bytes(const std::string& name);  // little-endian, as stored
  std::vector<float> read_floats(const std::string& name);   // F16, BF16 or F32, converted exactly

 private:
  [[noreturn]] void fail(const std::string& text) const;
  void parse_header(const std::string& header, uint64_t data_begin, uint64_t data_bytes);
  void check_tiling(uint64_t data_begin, uint64_t data_bytes) const;

  std::string path_;
  std::ifstream stream_;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace tq::cli
