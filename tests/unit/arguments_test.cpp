// SPDX-License-Identifier: Apache-2.0
// Arguments of attend, merge and the calls about devices at both sides of each border, and lists of reasons
// that just fit.
#include "api_arguments.h"

#include <gtest/gtest.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend.h"
#include "host_ops.h"
#include "paged_backend.h"
#include "status.h"
#include "tqkv.h"
#include "unit/api_cache.h"
#include "vector_backend.h"

namespace tq {
namespace {

template <typename Call>
std::string thrown(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool begins(const std::string& text, const std::string& start) {
  return text.substr(0, start.size()) == start;
}

LayerGeometry layer_of(int32_t window = 0) {
  LayerGeometry layer = {};
  layer.num_q_heads = 4, layer.num_kv_heads = 2, layer.q_per_kv = 2;
  layer.head_dim = 64, layer.value_dim = 32, layer.sliding_window = window;
  return layer;
}

std::string refusal(const std::function<void(tq_attend_params&)>& change, int32_t window = 0) {
  tq_attend_params p = {};
  p.struct_size = sizeof p;
  change(p);
  return thrown([&] { attend_request(layer_of(window), DataType::kF16, &p); });
}

TEST(Arguments, ScalesAndSoftcaps) {
  const float least = ldexpf(1, -126), most = ldexpf(1, 100);
  for (const float sign : {1.0f, -1.0f}) {
    EXPECT_EQ(refusal([&](tq_attend_params& p) { p.softmax_scale = sign * least; }), "");
    EXPECT_EQ(refusal([&](tq_attend_params& p) { p.softmax_scale = sign * most; }), "");
    for (const float wrong : {nextafterf(least, 0), nextafterf(most, INFINITY), INFINITY, NAN})
      EXPECT_TRUE(begins(refusal([&](tq_attend_params& p) { p.softmax_scale = sign * wrong; }),
                         "params.softmax_scale = "))
          << wrong;
  }
  EXPECT_EQ(refusal([&](tq_attend_params& p) { p.logit_softcap = least; }), "");
  EXPECT_EQ(refusal([&](tq_attend_params& p) { p.logit_softcap = most; }), "");
  EXPECT_EQ(refusal([&](tq_attend_params& p) { p.logit_softcap = 0; }), "");
  for (const float wrong : {nextafterf(least, 0), nextafterf(most, INFINITY), INFINITY, NAN, -1.0f, -least})
    EXPECT_TRUE(
        begins(refusal([&](tq_attend_params& p) { p.logit_softcap = wrong; }), "params.logit_softcap = "))
        << wrong;
  tq_attend_params p = {};
  p.struct_size = sizeof p;
  EXPECT_EQ(attend_request(layer_of(), DataType::kF16, &p).softmax_scale, 0.125f);
  EXPECT_EQ(attend_request(layer_of(), DataType::kF16, nullptr).softmax_scale, 0.125f);
  p.softmax_scale = -2;
  EXPECT_EQ(attend_request(layer_of(), DataType::kF16, &p).softmax_scale, -2.0f);
}

TEST(Arguments, NumbersOfAttend) {
  for (const int32_t type : {0, 1, 2, 3})
    EXPECT_EQ(refusal([&](tq_attend_params& p) { p.out_dtype = type; }), "");
  for (const int32_t type : {-1, 4})
    EXPECT_TRUE(begins(refusal([&](tq_attend_params& p) { p.out_dtype = type; }), "params.out_dtype = "));
  for (const int32_t history : {0, 1})
    EXPECT_EQ(refusal([&](tq_attend_params& p) { p.history_only = history; }), "");
  for (const int32_t history : {-1, 2})
    EXPECT_EQ(refusal([&](tq_attend_params& p) { p.history_only = history; }),
              "params.history_only = " + std::to_string(history) + ": must be 0 or 1");
  EXPECT_EQ(refusal([](tq_attend_params& p) { p.sliding_window = -1; }),
            "params.sliding_window = -1: must be 0 or more");
  EXPECT_EQ(refusal([](tq_attend_params& p) { p.sliding_window = 7; }, 7), "");
  EXPECT_EQ(refusal([](tq_attend_params& p) { p.sliding_window = 8; }, 7),
            "params.sliding_window = 8: the layer keeps what its own window of 7 tokens sees");
  static const uint64_t tree[4] = {};
  for (int32_t words = -1; words <= 3; words++) {
    const bool right = words >= 0 && words <= 2;
    const std::string out = "params.tree_words = " + std::to_string(words) + ": must be 0 (1), 1 or 2";
    tq_attend_params p = {};
    p.struct_size = sizeof p;
    p.tree_words = words;
    EXPECT_EQ(thrown([&] { attend_request(layer_of(), DataType::kF16, &p); }),
              !right       ? out
              : words == 0 ? ""
                           : "params.tree_words = " + std::to_string(words) + ": params.tree_mask = NULL");
    p.tree_mask = tree;
    EXPECT_EQ(thrown([&] { attend_request(layer_of(), DataType::kF16, &p); }), right ? "" : out);
    if (!right) continue;
    EXPECT_EQ(attend_request(layer_of(), DataType::kF16, &p).tree_words, words == 0 ? 1 : words);
  }
  tq_attend_params p = {};
  p.struct_size = sizeof p;
  const AttendRequest none = attend_request(layer_of(9), DataType::kBF16, &p);
  EXPECT_EQ(none.tree_words, 0);
  EXPECT_EQ(none.sliding_window, 9);
  EXPECT_EQ(none.out_dtype, DataType::kBF16);
  EXPECT_FALSE(none.history_only);
}

struct Merge {
  std::vector<float> a = std::vector<float>(64, 1.0f), b = a, out = a, lse = a;
  const void* outs[2] = {a.data(), b.data()};
  const float* lses[2] = {a.data(), b.data()};
  std::string refusal(const std::function<void(MergeRequest&)>& change) {
    MergeRequest r = {};
    r.num_states = 2, r.outs = outs, r.lses = lses, r.rows = 2, r.dim = 4, r.dtype = DataType::kF32;
    r.out = out.data(), r.lse = lse.data();
    change(r);
    return thrown([&] { check_merge(r, DeviceType::kCpu); });
  }
};

TEST(Arguments, Merges) {
  Merge m;
  EXPECT_EQ(m.refusal([](MergeRequest&) {}), "");
  EXPECT_EQ(m.refusal([](MergeRequest& r) { r.num_states = 1; }), "");
  for (const int32_t states : {0, -1, 1025})
    EXPECT_EQ(m.refusal([&](MergeRequest& r) { r.num_states = states; }),
              "num_states = " + std::to_string(states) + ": must be 1 .. 1024");
  std::vector<const void*> outs(1024, m.a.data());
  std::vector<const float*> lses(1024, m.a.data());
  EXPECT_EQ(
      m.refusal([&](MergeRequest& r) { r.num_states = 1024, r.outs = outs.data(), r.lses = lses.data(); }),
      "");
  EXPECT_EQ(m.refusal([](MergeRequest& r) { r.outs = nullptr; }), "outs = NULL");
  EXPECT_EQ(m.refusal([](MergeRequest& r) { r.lses = nullptr; }), "lses = NULL");
  EXPECT_EQ(m.refusal([](MergeRequest& r) { r.dim = 1; }), "");
  EXPECT_EQ(m.refusal([](MergeRequest& r) { r.dim = 65536; }), "");
  for (const int32_t dim : {0, 65537})
    EXPECT_EQ(m.refusal([&](MergeRequest& r) { r.dim = dim; }),
              "dim = " + std::to_string(dim) + ": must be 1 .. 65536");
  EXPECT_EQ(m.refusal([](MergeRequest& r) { r.rows = (int64_t{1} << 48) / 4; }), "");
  EXPECT_EQ(m.refusal([](MergeRequest& r) { r.rows = (int64_t{1} << 48) / 4 + 1; }),
            "rows = 70368744177665: must be 0 .. 2^48 / dim");
  EXPECT_EQ(m.refusal([](MergeRequest& r) { r.rows = -1; }), "rows = -1: must be 0 .. 2^48 / dim");
  for (int which = 0; which < 2; which++) {
    const std::string at = "[" + std::to_string(which) + "] = ";
    const void* const out = m.outs[which];
    const float* const lse = m.lses[which];
    for (const int off : {0, 1}) {  // NULL, and between two numbers
      m.outs[which] = off ? reinterpret_cast<const char*>(out) + 1 : nullptr;
      EXPECT_TRUE(begins(m.refusal([](MergeRequest&) {}), "outs" + at));
      m.outs[which] = out;
      m.lses[which] = off ? reinterpret_cast<const float*>(reinterpret_cast<const char*>(lse) + 1) : nullptr;
      EXPECT_TRUE(begins(m.refusal([](MergeRequest&) {}), "lses" + at));
      m.lses[which] = lse;
    }
    m.outs[which] = nullptr;
    EXPECT_TRUE(begins(m.refusal([](MergeRequest& r) { r.rows = 1; }), "outs" + at + "NULL"));
    m.outs[which] = out, m.lses[which] = nullptr;
    EXPECT_TRUE(begins(m.refusal([](MergeRequest& r) { r.rows = 1; }), "lses" + at + "NULL"));
    m.outs[which] = nullptr;
    EXPECT_EQ(m.refusal([](MergeRequest& r) { r.rows = 0; }), "");
    m.outs[which] = out, m.lses[which] = lse;
  }
  m.outs[0] = reinterpret_cast<const char*>(m.a.data()) + 2;  // a half may lie there
  EXPECT_EQ(m.refusal([](MergeRequest& r) { r.dtype = DataType::kF16; }), "");
  m.outs[0] = m.a.data();
  EXPECT_TRUE(begins(m.refusal([](MergeRequest& r) { r.out = nullptr; }), "out = "));
  EXPECT_TRUE(begins(m.refusal([](MergeRequest& r) { r.out = nullptr, r.rows = 1; }), "out = NULL"));
  EXPECT_EQ(m.refusal([](MergeRequest& r) { r.out = nullptr, r.rows = 0; }), "");
  EXPECT_EQ(m.refusal([](MergeRequest& r) { r.lse = nullptr; }), "");
  EXPECT_TRUE(begins(m.refusal([&](MergeRequest& r) {
    r.lse = reinterpret_cast<float*>(reinterpret_cast<char*>(m.lse.data()) + 2);
  }),
                     "lse = "));
  for (const int32_t device : {-1, 1, 2})
    EXPECT_EQ(m.refusal([&](MergeRequest& r) { r.device_id = device; }),
              "device_id = " + std::to_string(device) + ": there are 1 devices of type 1");
  EXPECT_TRUE(begins(m.refusal([&](MergeRequest& r) { r.stream = &m; }), "stream = "));
}

TEST(Arguments, MacsOfCallbacks) {
  tq_io io = {};
  io.struct_size = sizeof io;
  io.read = [](void*, void*, size_t) { return int32_t{0}; };
  EXPECT_EQ(thrown([&] { checked_io(&io, true); }), "");
  EXPECT_EQ(thrown([&] { checked_io(&io, false); }), "io.write = NULL");
  io.mac_bytes = 16;
  EXPECT_EQ(thrown([&] { checked_io(&io, true); }), "io.mac_bytes = 16: must be 0 without io.mac");
  io.mac = [](void*, const void*, size_t, void*) { return int32_t{0}; };
  for (const int32_t bytes : {16, 64}) {
    io.mac_bytes = bytes;
    EXPECT_EQ(thrown([&] { checked_io(&io, true); }), "");
  }
  for (const int32_t bytes : {0, 15, 65}) {
    io.mac_bytes = bytes;
    EXPECT_EQ(thrown([&] { checked_io(&io, true); }),
              "io.mac_bytes = " + std::to_string(bytes) + ": must be 16 .. 64");
  }
}

TEST(Arguments, Devices) {
  int32_t count = -5;
  ASSERT_EQ(tq_device_count(TQ_DEVICE_CPU, &count), TQ_OK);
  EXPECT_EQ(count, 1);
  for (const int32_t type : {0, 3, -1}) {
    EXPECT_EQ(tq_device_count(type, &count), TQ_ERROR_INVALID_ARGUMENT);
    EXPECT_EQ(count, 1);
  }
  tq_device_info info = {};
  info.struct_size = sizeof info;
  ASSERT_EQ(tq_device_get_info(TQ_DEVICE_CPU, 0, &info), TQ_OK) << tq_last_error();
  EXPECT_EQ(info.memory_bytes, int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE));
  EXPECT_GE(info.num_units, 1);
  for (const int32_t index : {-1, 1}) {
    EXPECT_EQ(tq_device_get_info(TQ_DEVICE_CPU, index, &info), TQ_ERROR_NO_DEVICE);
    EXPECT_EQ(std::string(tq_last_error()),
              "index = " + std::to_string(index) + ": there are 1 devices of type 1");
  }
  // A caller of an older header: what its struct has, and not a byte more.
  struct {
    tq_device_info info;
    uint8_t guard[16];
  } small;
  memset(&small, 0x5A, sizeof small);
  small.info.struct_size = 8;
  ASSERT_EQ(tq_device_get_info(TQ_DEVICE_CPU, 0, &small.info), TQ_OK) << tq_last_error();
  EXPECT_EQ(small.info.struct_size, 8u);
  EXPECT_EQ(small.info.device_type, TQ_DEVICE_CPU);
  const auto* bytes = reinterpret_cast<const uint8_t*>(&small);
  for (size_t i = 8; i < sizeof small; i++) ASSERT_EQ(bytes[i], 0x5A) << i;
  // And of a newer one: the rest stays.
  memset(&small, 0x5A, sizeof small);
  small.info.struct_size = sizeof small;
  memset(small.guard, 0, sizeof small.guard);
  ASSERT_EQ(tq_device_get_info(TQ_DEVICE_CPU, 0, &small.info), TQ_OK) << tq_last_error();
  EXPECT_EQ(small.info.struct_size, sizeof small);
  for (const uint8_t each : small.guard) EXPECT_EQ(each, 0);
}

// Each object's creation on a device that this build has not.
TEST(Arguments, NoCuda) {
  int32_t count = -1;
  ASSERT_EQ(tq_device_count(TQ_DEVICE_CUDA, &count), TQ_OK);
  if (count != 0) GTEST_SKIP() << "there is one";
  tq_device_info info = {};
  info.struct_size = sizeof info;
  EXPECT_EQ(tq_device_get_info(TQ_DEVICE_CUDA, 0, &info), TQ_ERROR_NO_DEVICE);
  tq_cache_config config = {};
  config.struct_size = sizeof config;
  config.device_type = TQ_DEVICE_CUDA;
  config.num_layers = config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim = 64, config.io_dtype = TQ_F16, config.key_bits = config.value_bits = 4;
  tq_codec* codec = nullptr;
  EXPECT_NE(tq_codec_create(&config, nullptr, &codec), TQ_OK);
  EXPECT_EQ(codec, nullptr);
  config.max_tokens = 64;
  tq_cache* cache = nullptr;
  EXPECT_NE(tq_cache_create(&config, nullptr, &cache), TQ_OK);
  EXPECT_EQ(cache, nullptr);
  tq_quantizer_config quantizer_config = {};
  quantizer_config.struct_size = sizeof quantizer_config;
  quantizer_config.device_type = TQ_DEVICE_CUDA;
  quantizer_config.dim = 64, quantizer_config.bits = 4;
  tq_quantizer* quantizer = nullptr;
  EXPECT_NE(tq_quantizer_create(&quantizer_config, &quantizer), TQ_OK);
  EXPECT_EQ(quantizer, nullptr);
  tq_calibration_config calibration_config = {};
  calibration_config.struct_size = sizeof calibration_config;
  calibration_config.num_layers = calibration_config.num_q_heads = calibration_config.num_kv_heads = 1;
  calibration_config.head_dim = calibration_config.value_dim = 32, calibration_config.io_dtype = TQ_F32;
  calibration_config.held_out_tokens = 32;
  tq_calibration* calibration = nullptr;
  ASSERT_EQ(tq_calibration_create(&calibration_config, &calibration), TQ_OK) << tq_last_error();
  const float x[32] = {};
  EXPECT_NE(tq_calibration_feed_from(calibration, 0, 1, x, x, x, TQ_DEVICE_CUDA, 0, nullptr), TQ_OK);
  EXPECT_EQ(std::string(tq_last_error()).substr(0, 7), "device_") << tq_last_error();
  EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK);
}

// What a core that takes a CUDA device for granted would reach: each place says that there is none.
TEST(Arguments, NoCudaBehindTheConfiguration) {
  if (!strstr(build_info(), "cuda off")) GTEST_SKIP() << "this build has it";
  const std::string none = "device_type = 2 (CUDA): this build has no CUDA support";
  const Geometry geometry = {};
  VectorGeometry vectors = {};
  vectors.device_type = DeviceType::kCuda;
  const HostOps ops = {};
  EXPECT_EQ(thrown([&] { backend_bytes(DeviceType::kCuda, geometry); }), none);
  EXPECT_EQ(thrown([&] { create_backend(DeviceType::kCuda, geometry, ops, nullptr, nullptr); }), none);
  EXPECT_EQ(thrown([&] { create_paged_backend(DeviceType::kCuda, geometry, ops, nullptr); }), none);
  EXPECT_EQ(thrown([&] { create_vector_backend(vectors, ops, ops); }), none);
  EXPECT_EQ(thrown([&] { merge_states(DeviceType::kCuda, MergeRequest{}); }), none);
  EXPECT_EQ(thrown([&] { create_device_reader(0, 64, nullptr); }), none);
  LayerGeometry layers[3] = {};
  Geometry three = {};
  three.num_layers = 3, three.layers = layers;
  const auto reasons = [&](DeviceType type) {
    ReasonList list;
    check_backend(type, three, list);
    return std::string(list.text());
  };
  for (LayerGeometry& layer : layers) layer.rotation = format::Rotation::kHadamard;
  EXPECT_EQ(reasons(DeviceType::kCuda), "");
  const std::string dense = ": rotation = 2 (TQ_ROTATION_DENSE): CPU only, for faithful runs";
  for (const int last : {2, 1, 0}) {
    layers[last].rotation = format::Rotation::kDense;
    EXPECT_EQ(reasons(DeviceType::kCuda), "layer " + std::to_string(last) + dense);
    EXPECT_EQ(reasons(DeviceType::kCpu), "");
  }
}

// What a caller's C++ callback throws ends at the interface.
TEST(Arguments, ExceptionsOfCallbacks) {
  OneCache own;
  const tq_sequence sequence = own.create();
  tq_io io = {};
  io.struct_size = sizeof io;
  io.write = [](void*, const void*, size_t) -> int32_t { throw std::runtime_error("of the caller"); };
  EXPECT_EQ(tq_sequence_save(own.cache, sequence, &io, nullptr), TQ_ERROR_INTERNAL);
  EXPECT_STREQ(tq_last_error(), "of the caller");
  io.write = [](void*, const void*, size_t) -> int32_t { throw 5; };
  EXPECT_EQ(tq_sequence_save(own.cache, sequence, &io, nullptr), TQ_ERROR_INTERNAL);
  EXPECT_STREQ(tq_last_error(), "an exception of unknown type reached the interface");
  io.write = [](void*, const void*, size_t) -> int32_t { throw std::bad_alloc(); };
  EXPECT_EQ(tq_sequence_save(own.cache, sequence, &io, nullptr), TQ_ERROR_OUT_OF_MEMORY);
  EXPECT_STREQ(tq_last_error(), "out of host memory");
  EXPECT_EQ(tq_sequence_free(own.cache, sequence, nullptr), TQ_OK);
}

// Texts that fill a list to its last byte, and one more.
TEST(Arguments, ReasonsThatJustFit) {
  constexpr size_t kRoom = Error::kTextBytes - 32;
  for (size_t first = 1; first < 40; first++)
    for (const size_t second : {kRoom - first - 4, kRoom - first - 3, kRoom - first - 2, kRoom - first - 1,
                                kRoom - first, kRoom - first + 1}) {
      ReasonList reasons;
      const std::string a(first, 'a'), b(second, 'b');
      reasons.add(Status::kInvalidArgument, "%s", a.c_str());
      reasons.add(Status::kInvalidArgument, "%s", b.c_str());
      // One byte for the line's end, one for the text's.
      const bool fits = first + 1 + second + 1 <= kRoom;
      EXPECT_EQ(std::string(reasons.text()), a + "\n" + (fits ? b : std::string("... and 1 more")));
      reasons.add(Status::kInvalidArgument, "c");
      const size_t used = first + 1 + (fits ? second : 0);
      const std::string last = !fits ? "\n... and 2 more" : used + 2 < kRoom ? "\nc" : "\n... and 1 more";
      EXPECT_EQ(std::string(reasons.text()), a + (fits ? "\n" + b : std::string()) + last) << first << second;
    }
  for (const size_t length : {kRoom - 2, kRoom - 1, kRoom, kRoom + 1}) {  // one alone is cut
    ReasonList reasons;
    reasons.add(Status::kInvalidArgument, "%s", std::string(length, 'x').c_str());
    EXPECT_EQ(strlen(reasons.text()), std::min(length, kRoom - 1));
    reasons.add(Status::kInvalidArgument, "y");
    EXPECT_EQ(std::string(reasons.text()).substr(std::min(length, kRoom - 1)),
              length + 3 <= kRoom ? "\ny" : "\n... and 1 more");
  }
}

}  // namespace
}  // namespace tq
