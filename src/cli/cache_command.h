// SPDX-License-Identifier: Apache-2.0
//
// `tqkv cache info|verify|convert`: saved sequences on the command line.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "cli/saved_convert.h"

namespace tq::cli {

// The subcommands with their arguments; made before the command line is parsed, run after.
class CacheCommand {
 public:
  CacheCommand(CLI::App& app, const char* footer);
  // Checks that CLI11 leaves to us; CLI::ParseError.
  void check() const;
  // Does what was asked for, nothing if it was another subcommand.
  void run() const;

 private:
  void info() const;
  void verify() const;
  void convert() const;

  CLI::App *info_, *verify_, *convert_;
  std::vector<std::string> files_;
  std::string output_, layers_, kv_heads_;
  bool json_ = false, quiet_ = false, no_exact_ = false;
};

}  // namespace tq::cli
