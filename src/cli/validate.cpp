// SPDX-License-Identifier: Apache-2.0
//
// The suite is Python (NumPy), so this process becomes an interpreter. What that interpreter runs first says
// in words if the package is missing; whatever happens later is the package's own.
#include "cli/validate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

namespace tq::cli {
namespace {

constexpr char kLauncher[] =
    "import importlib.util, runpy, sys\n"
    "if importlib.util.find_spec('tqkv') is None or importlib.util.find_spec('tqkv.validate') is None:\n"
    "    print('tqkv: validate is part of the Python package tqkv, which', sys.executable, 'does not have. "
    "'\n"
    "          'Install it (bindings/python/README.md), or name an interpreter that has it in "
    "TQKV_PYTHON.',\n"
    "          file=sys.stderr)\n"
    "    sys.exit(3)\n"
    "runpy.run_module('tqkv.validate', run_name='__main__', alter_sys=True)\n";

}  // namespace

void run_validate(const std::vector<std::string>& arguments) {
  const char* named = getenv("TQKV_PYTHON");
  const std::string python = named != nullptr && named[0] != '\0' ? named : "python3";
  std::vector<std::string> words = {python, "-c", kLauncher};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(&word[0]);
  argv.push_back(nullptr);
  execvp(argv[0], argv.data());
  throw PythonError("validate needs Python with the package tqkv: cannot run '" + python +
                    "': " + strerror(errno) + " (TQKV_PYTHON names another interpreter)");
}

}  // namespace tq::cli
