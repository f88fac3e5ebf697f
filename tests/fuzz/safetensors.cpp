// SPDX-License-Identifier: Apache-2.0
// The reader of safetensors files and captures on hostile bytes. What it accepts is held against what the
// format promises: ranges tile the data, sizes are dtype times shape, reads give exactly these bytes, and the
// file written anew from what was read is read the same.
//
// The mutator mends what would end most inputs early: the length in front of the header, and, in half of the
// headers that are JSON, the offsets of the tensors and the length of the data.
#include <sys/mman.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <string>

#include "cli/capture.h"
#include "cli/safetensors.h"
#include "fuzz.h"

namespace {

using tq::cli::SafetensorsFile;
using tq::cli::TensorInfo;
using Json = nlohmann::json;

constexpr size_t kMostData = 1 << 16;

// A file in memory that has a path.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size) : file_(memfd_create("fuzz", MFD_CLOEXEC)) {
    FUZZ_CHECK(file_ >= 0 && write(file_, data, size) == static_cast<ssize_t>(size), "memfd of %zu bytes",
               size);
  }
  explicit MemoryFile(const std::string& text)
      : MemoryFile(reinterpret_cast<const uint8_t*>(text.data()), text.size()) {}
  ~MemoryFile() { close(file_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_;
};

std::string length_prefix(uint64_t length) {
  std::string prefix;
  for (int i = 0; i < 8; i++) prefix += static_cast<char>(length >> (8 * i));
  return prefix;
}

size_t element_bytes(const std::string& dtype) {
  if (dtype == "BOOL") return 1;
  const size_t digits = dtype.find_first_of("0123456789");
  return static_cast<size_t>(std::atoi(dtype.c_str() + digits)) / 8;
}

// The file that holds what `file` holds, tensors in the order of their names.
std::string written_anew(SafetensorsFile& file) {
  Json header = Json::object();
  if (!file.metadata().empty()) header["__metadata__"] = file.metadata();
  std::string data;
  for (const auto& [name, info] : file.tensors()) {
    const std::vector<uint8_t> bytes = file.read_bytes(name);
    header[name] = {{"dtype", info.dtype},
                    {"shape", info.shape},
                    {"data_offsets", {data.size(), data.size() + bytes.size()}}};
    data.append(bytes.begin(), bytes.end());
  }
  const std::string text = header.dump();
  return length_prefix(text.size()) + text + data;
}

void check_tensors(SafetensorsFile& file, size_t size) {
  uint64_t all = 0;
  for (const auto& [name, info] : file.tensors()) {
    uint64_t elements = 1;
    for (const int64_t dim : info.shape) elements *= static_cast<uint64_t>(dim);
    FUZZ_CHECK(elements == info.elements && info.bytes == elements * element_bytes(info.dtype),
               "%s: %llu elements, %llu bytes", info.dtype.c_str(),
               static_cast<unsigned long long>(info.elements), static_cast<unsigned long long>(info.bytes));
    FUZZ_CHECK(info.offset <= size && info.bytes <= size - info.offset, "beyond the file's end");
    FUZZ_CHECK(file.read_bytes(name).size() == info.bytes, "a short read");
    all += info.bytes;
    try {
      FUZZ_CHECK(file.read_floats(name).size() == info.elements, "floats are missing");
      FUZZ_CHECK(info.dtype == "F32" || info.dtype == "F16" || info.dtype == "BF16", "%s as floats",
                 info.dtype.c_str());
    } catch (const tq::cli::SafetensorsError&) {
      FUZZ_CHECK(info.dtype != "F32" && info.dtype != "F16" && info.dtype != "BF16", "%s is refused",
                 info.dtype.c_str());
    }
  }
  FUZZ_CHECK(all <= size - 8, "tensors of %llu bytes in a file of %zu", static_cast<unsigned long long>(all),
             size);
}

void check_capture(const std::string& path) {
  try {
    tq::cli::Capture capture(path, {});
    const tq::cli::CaptureShape& shape = capture.shape();
    for (const int layer : capture.layers()) {
      const tq::cli::LayerData data = capture.read(layer);
      FUZZ_CHECK(data.key.size() == static_cast<size_t>(shape.tokens) * static_cast<size_t>(shape.kv_heads) *
                                        static_cast<size_t>(shape.key_dim),
                 "keys of layer %d", layer);
    }
  } catch (const tq::cli::CaptureError&) {
  }
}

void check_complaint(const char* text, const std::string& path) {
  FUZZ_CHECK(strstr(text, path.c_str()) == text, "no path in front: %s", text);
  for (const char* at = text; *at; at++)
    FUZZ_CHECK(static_cast<unsigned char>(*at) >= 0x20 && *at != 0x7F, "byte %d in a complaint", *at);
}

// A header with offsets that follow from dtypes and shapes; "" if it is none.
std::string mended_header(const std::string& text, size_t* data_bytes) {
  Json header = Json::parse(text, nullptr, false);
  if (!header.is_object() || header.empty()) return "";
  size_t at = 0;
  for (auto& [name, entry] : header.items()) {
    if (!entry.is_object() || name == "__metadata__") continue;
    size_t bytes = entry.contains("dtype") && entry["dtype"].is_string() &&
                           entry["dtype"].get<std::string>().find_first_of("0123456789") != std::string::npos
                       ? std::min<size_t>(element_bytes(entry["dtype"].get<std::string>()), 64)
                       : 1;
    if (entry.contains("shape") && entry["shape"].is_array())
      for (const Json& dim : entry["shape"])
        bytes *= dim.is_number_unsigned() ? std::min<size_t>(dim.get<size_t>(), kMostData) : 1,
            bytes = std::min(bytes, kMostData);
    entry["data_offsets"] = {at, at + bytes};
    at += bytes;
  }
  *data_bytes = at;
  return header.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile bytes(data, size);
  try {
    SafetensorsFile file(bytes.path());
    check_tensors(file, size);
    bool text = true;  // names that are no UTF-8 cannot be written anew
    std::string again;
    try {
      again = written_anew(file);
    } catch (const Json::type_error&) {
      text = false;
    }
    if (text) {
      const MemoryFile copy(again);
      SafetensorsFile second(copy.path());
      FUZZ_CHECK(second.metadata() == file.metadata() && second.tensors().size() == file.tensors().size() &&
                     written_anew(second) == again,
                 "written anew it is another file");
    }
  } catch (const tq::cli::SafetensorsError& error) {
    check_complaint(error.what(), bytes.path());
    return 0;
  }
  check_capture(bytes.path());
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::minstd_rand random(seed);
  if (size < 10 || random() % 8 == 0) return LLVMFuzzerMutate(data, size, max_size);
  const size_t length = std::min<size_t>(tq::fuzz::number_at(data, size, 0, 8), size - 8);
  std::string header(data + 8, data + 8 + length), rest(data + 8 + length, data + size);
  header.resize(std::max<size_t>(header.size() * 2, 64));
  header.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(&header[0]), length, header.size()));
  size_t data_bytes = rest.size();
  if (random() % 2) {
    const std::string mended = mended_header(header, &data_bytes);
    if (!mended.empty()) header = mended, rest.resize(data_bytes, 'x');
  }
  const std::string whole = length_prefix(header.size()) + header + rest;
  if (whole.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::copy(whole.begin(), whole.end(), data);
  return whole.size();
}
