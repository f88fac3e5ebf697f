// SPDX-License-Identifier: Apache-2.0
//
// `tqkv validate`: the front end of the Python package's tqkv.validate.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace tq::cli {

// There is no Python to run.
class PythonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Becomes `python -m tqkv.validate arguments...`; its exit status is the program's. The interpreter is that
// of the environment variable TQKV_PYTHON, else python3. An interpreter without the package says so and ends
// with status 3; without an interpreter: PythonError. Never returns.
[[noreturn]] void run_validate(const std::vector<std::string>& arguments);

}  // namespace tq::cli
