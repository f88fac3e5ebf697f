// SPDX-License-Identifier: Apache-2.0
//
// See safetensors.h. The header cap is the reference implementation's (100 MB); a JSON key may occur once
// only, because readers that take the first and readers that take the last would see different files.
#include "cli/safetensors.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "cli/printable.h"

namespace tq::cli {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxDims = 16;

uint64_t dtype_bytes(const std::string& dtype) {
  static const std::map<std::string, uint64_t> kBytes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
      {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}};
  const auto found = kBytes.find(dtype);
  return found == kBytes.end() ? 0 : found->second;
}

bool multiply(uint64_t a, uint64_t b, uint64_t* product) { return !__builtin_mul_overflow(a, b, product); }

// What a header may hold. The JSON library keeps 16 to 100 bytes for every value and, in a nest of arrays, 75
// for every byte of the file: the nesting and the number of values are bounded while the text is read, so
// that a header costs at most a few times its own size and 100 MB. It also keeps the last of equal keys
// without a word; this sees each object's keys as they come.
class HeaderRules {
 public:
  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_end) open_.pop_back();
    if (event == Event::object_end || event == Event::array_end) return true;
    if (++values_ > kMaxValues) throw Broken("more than " + std::to_string(kMaxValues) + " names and values");
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= kMaxDepth)
        throw Broken("objects or arrays nested deeper than the " + std::to_string(kMaxDepth) +
                     " levels of the format");
      if (event == Event::object_start) open_.emplace_back();
    }
    if (event == Event::key && !open_.back().insert(parsed.get<std::string>()).second)
      throw Broken("the name " + in_quotes(parsed.get<std::string>()) + " twice");
    return true;
  }

  struct Broken : std::runtime_error {
    using std::runtime_error::runtime_error;
  };

 private:
  static constexpr int kMaxDepth = 3;  // the header, a tensor's entry, its shape
  static constexpr int64_t kMaxValues = 1'000'000;
  std::vector<std::set<std::string>> open_;
  int64_t values_ = 0;
};

Json parse_json(const std::string& text) {
  HeaderRules rules;
  return Json::parse(text, std::ref(rules), false);
}

// The entry of one tensor; *problem tells what is wrong with it.
TensorInfo parse_tensor(const Json& entry, uint64_t data_begin, uint64_t data_bytes, std::string* problem) {
  TensorInfo info;
  const auto fail = [&](const std::string& text) {
    *problem = text;
    return info;
  };
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") ||
      !entry.contains("data_offsets")) {
    return fail("needs dtype, shape and data_offsets");
  }
  if (!entry["dtype"].is_string()) return fail("dtype is not a string");
  info.dtype = entry["dtype"].get<std::string>();
  const uint64_t element_bytes = dtype_bytes(info.dtype);
  if (element_bytes == 0) return fail("unknown dtype " + in_quotes(info.dtype));
  const Json& shape = entry["shape"];
  if (!shape.is_array() || shape.size() > kMaxDims)
    return fail("shape is not an array of at most " + std::to_string(kMaxDims) + " counts");
  info.elements = 1;
  for (const Json& dim : shape) {
    if (!dim.is_number_unsigned() || dim.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))
      return fail("shape holds something else than counts");
    info.shape.push_back(dim.get<int64_t>());
    if (!multiply(info.elements, dim.get<uint64_t>(), &info.elements))
      return fail("shape " + shape_text(info.shape) + " overflows");
  }
  const Json& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    return fail("data_offsets is not a pair of counts");
  }
  const uint64_t begin = offsets[0].get<uint64_t>();
  const uint64_t end = offsets[1].get<uint64_t>();
  const std::string range = "data_offsets " + std::to_string(begin) + ", " + std::to_string(end);
  if (begin > end) return fail(range + " run backwards");
  if (end > data_bytes)
    return fail(range + " end beyond the " + std::to_string(data_bytes) +
                " bytes of data in the file: truncated?");
  if (!multiply(info.elements, element_bytes, &info.bytes) || info.bytes != end - begin) {
    return fail(std::to_string(end - begin) + " bytes do not hold " + info.dtype + " " +
                shape_text(info.shape));
  }
  info.offset = data_begin + begin;
  return info;
}

// The exact value of a float16: rebuilt in float32, subnormals by an exact subtraction.
float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1Fu;
  const uint32_t mantissa = half & 0x3FFu;
  uint32_t bits = 0;
  if (exponent == 0x1F) {
    bits = sign | 0x7F800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&bits, &magnitude, sizeof bits);
    bits |= sign;
  }
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float bfloat_to_float(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void SafetensorsFile::fail(const std::string& text) const {
  throw SafetensorsError(printable(path_) + ": " + text);
}

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) fail("no such file");
  if (error) fail(error.message());
  if (status.type() != std::filesystem::file_type::regular) fail("not a regular file");
  const uint64_t file_bytes = std::filesystem::file_size(path, error);
  if (error) fail(error.message());
  stream_.open(path, std::ios::binary);
  if (!stream_) fail(std::string("cannot be opened: ") + std::strerror(errno));

  if (file_bytes < 8)
    fail("not a safetensors file: " + std::to_string(file_bytes) + " bytes, a header length alone takes 8");
  unsigned char length_bytes[8];
  stream_.read(reinterpret_cast<char*>(length_bytes), sizeof length_bytes);
  if (!stream_) fail("cannot be read");
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | length_bytes[i];
  if (header_bytes > kMaxHeaderBytes) {
    fail("not a safetensors file: its first 8 bytes give a header of " + std::to_string(header_bytes) +
         " bytes, above the limit of " + std::to_string(kMaxHeaderBytes));
  }
  if (header_bytes > file_bytes - 8) {
    fail("truncated, or not a safetensors file: a header of " + std::to_string(header_bytes) +
         " bytes in a file of " + std::to_string(file_bytes) + " bytes");
  }
  std::string header(header_bytes, '\0');
  stream_.read(header.data(), static_cast<std::streamsize>(header.size()));
  if (!stream_) fail("cannot be read");
  parse_header(header, 8 + header_bytes, file_bytes - 8 - header_bytes);
  check_tiling(8 + header_bytes, file_bytes - 8 - header_bytes);
}

void SafetensorsFile::parse_header(const std::string& header, uint64_t data_begin, uint64_t data_bytes) {
  if (header.empty() || header[0] != '{') fail("not a safetensors file: the header does not start with '{'");
  Json json;
  try {
    json = parse_json(header);
  } catch (const HeaderRules::Broken& broken) {
    fail("the header of " + std::to_string(header.size()) + " bytes holds " + broken.what());
  }
  if (json.is_discarded() || !json.is_object()) fail("not a safetensors file: the header is not valid JSON");
  for (const auto& [name, entry] : json.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) fail("__metadata__ is not an object");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) fail("__metadata__ " + in_quotes(key) + " is not a string");
        metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    std::string problem;
    tensors_[name] = parse_tensor(entry, data_begin, data_bytes, &problem);
    if (!problem.empty()) fail("tensor " + in_quotes(name) + ": " + problem);
  }
}

void SafetensorsFile::check_tiling(uint64_t data_begin, uint64_t data_bytes) const {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const auto& [name, info] : tensors_) ranges.emplace_back(info.offset - data_begin, info.bytes);
  std::sort(ranges.begin(), ranges.end());
  uint64_t at = 0;
  for (const auto& [begin, bytes] : ranges) {
    if (begin < at) fail("tensors overlap at byte " + std::to_string(begin) + " of the data");
    if (begin > at)
      fail("no tensor holds bytes " + std::to_string(at) + " to " + std::to_string(begin) + " of the data");
    at = begin + bytes;
  }
  if (at != data_bytes)
    fail("no tensor holds the last " + std::to_string(data_bytes - at) + " bytes of the data");
}

const TensorInfo& SafetensorsFile::info(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail("no tensor " + in_quotes(name));
  return found->second;
}

std::vector<uint8_t> SafetensorsFile::read_bytes(const std::string& name) {
  const TensorInfo& tensor = info(name);
  std::vector<uint8_t> bytes(tensor.bytes);
  stream_.clear();
  stream_.seekg(static_cast<std::streamoff>(tensor.offset));
  stream_.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!stream_) fail("cannot read tensor " + in_quotes(name) + ": the file has become shorter");
  return bytes;
}

std::vector<float> SafetensorsFile::read_floats(const std::string& name) {
  const TensorInfo& tensor = info(name);
  const bool half = tensor.dtype == "F16";
  if (!half && tensor.dtype != "BF16" && tensor.dtype != "F32")
    fail("tensor " + in_quotes(name) + " is " + tensor.dtype + "; F16, BF16 or F32 is needed");
  const std::vector<uint8_t> bytes = read_bytes(name);
  std::vector<float> values(tensor.elements);
  for (size_t i = 0; i < values.size(); ++i) {
    if (tensor.dtype == "F32") {
      const uint8_t* p = &bytes[4 * i];
      const uint32_t bits = p[0] | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24;
      std::memcpy(&values[i], &bits, sizeof bits);
    } else {
      const auto bits = static_cast<uint16_t>(bytes[2 * i] | bytes[2 * i + 1] << 8);
      values[i] = half ? half_to_float(bits) : bfloat_to_float(bits);
    }
  }
  return values;
}

}  // namespace tq::cli
