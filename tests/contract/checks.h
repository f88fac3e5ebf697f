// SPDX-License-Identifier: Apache-2.0
// What steps of all kinds are checked by: the tensors of the file, a call's status and text, numbers.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "cases.h"
#include "tqkv.h"

namespace contract {

[[noreturn]] inline void fail(const std::string& why) { throw std::runtime_error(why); }

class Checks {
 public:
  explicit Checks(const Tensors& tensors) : tensors_(tensors) {}

 protected:
  const Tensor& tensor(const Json& step, const char* field) {
    return tensors_.at(step.at(field).get<std::string>());
  }
  const void* input(const Json& step, const char* field) {
    return step.contains(field) ? tensor(step, field).bytes.data() : nullptr;
  }

  // Compares a call's status and text with the step's; true if the call was to succeed and did.
  bool expected(const Json& step, tq_status status, const char* own_text = nullptr) {
    const std::string name = tq_status_name(status), wanted = step.value("status", "TQ_OK"),
                      text = own_text ? own_text : tq_last_error();
    if (name != wanted) fail("gave " + name + " (" + text + "), expected " + wanted);
    if (status == TQ_OK) return true;
    for (const Json& part : step.at("text"))
      if (text.find(part.get<std::string>()) == std::string::npos)
        fail("the text \"" + text + "\" does not hold " + part.dump());
    return false;
  }

  template <typename T>
  void expect_equal(const Json& step, T value) {
    if (value != step.at("expect").get<T>())
      fail("gave " + std::to_string(value) + ", expected " + step.at("expect").dump());
  }

  void compare(const Json& step, const char* field, const std::vector<uint8_t>& bytes, int32_t dtype) {
    if (!step.contains(field)) return;
    const std::string l2 = std::string(field) + "_l2", abs = std::string(field) + "_abs";
    const std::string why =
        tensor(step, field).difference(bytes, dtype, step.value(l2, 0.0), step.value(abs, 0.0));
    if (!why.empty()) fail(std::string(field) + why);
  }
  // params of an attend step; false if it has none.
  bool read_attend_params(const Json& step, tq_attend_params& params) {
    params = {};
    params.struct_size = sizeof params;
    if (!step.contains("params")) return false;
    const Json& given = step["params"];
    read_params(given, params);
    params.sink_logits = static_cast<const float*>(input(given, "sink_logits"));
    params.visible_begin = static_cast<const int32_t*>(input(given, "visible_begin"));
    params.visible_end = static_cast<const int32_t*>(input(given, "visible_end"));
    params.tree_mask = static_cast<const uint64_t*>(input(given, "tree_mask"));
    params.alibi_slopes = static_cast<const float*>(input(given, "alibi_slopes"));
    return true;
  }

  const Tensors& tensors_;
};

}  // namespace contract
