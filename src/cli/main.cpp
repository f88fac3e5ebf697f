// SPDX-License-Identifier: Apache-2.0
//
// The command-line tool `tqkv`: arguments, and errors as exit codes. The work is in evaluate.cpp and
// info.cpp.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "cli/cache_command.h"
#include "cli/calibrate_command.h"
#include "cli/capture.h"
#include "cli/cheapest.h"
#include "cli/evaluate.h"
#include "cli/info.h"
#include "cli/library.h"
#include "cli/models.h"
#include "cli/output.h"
#include "cli/printable.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/svg_plot.h"
#include "cli/validate.h"

namespace {

using namespace tq::cli;

constexpr int kExitUnexpected = 1, kExitUsage = 2, kExitFile = 3, kExitCapture = 4, kExitLibrary = 5,
              kExitOutput = 6;
constexpr int kExitNoPython = 3;  // of validate, as the Python package's own for what it lacks
constexpr char kFooter[] =
    "Exit codes: 0 done; 1 unexpected failure; 2 wrong arguments; 3 the file cannot be read or is no sound "
    "safetensors file (cache: no whole saved sequence);\n"
    "4 it is no capture that can be evaluated; 5 the library refused (unsupported configuration, device, "
    "memory); 6 an output cannot be written.";

using Choices = std::map<std::string, int32_t>;
const Choices kRotations = {{"hadamard", TQ_ROTATION_HADAMARD}, {"dense", TQ_ROTATION_DENSE}};
const Choices kFamilies = {{"scalar", TQ_CODE_SCALAR},
                           {"prod", TQ_CODE_PROD},
                           {"grouped", TQ_CODE_GROUPED},
                           {"trellis", TQ_CODE_TRELLIS}};
const Choices kSketches = {{"orthogonal", TQ_SKETCH_ORTHOGONAL}, {"gaussian", TQ_SKETCH_GAUSSIAN}};
const Choices kSketchRules = {{"unbiased", TQ_SKETCH_UNBIASED}, {"least-error", TQ_SKETCH_LEAST_ERROR}};
const Choices kRules = {
    {"ls", TQ_SCALE_LS}, {"unbiased", TQ_SCALE_UNBIASED}, {"norm", TQ_SCALE_NORM}, {"paper", TQ_SCALE_PAPER}};
const Choices kDevices = {{"cpu", TQ_DEVICE_CPU}, {"cuda", TQ_DEVICE_CUDA}};

struct EvalArguments {
  std::string capture;
  int32_t key_bits = 3;
  int32_t value_bits = 3;
  bool sweep = false;
  std::string layers;
  std::vector<std::string> calibrations;
  bool cheapest = false;
  std::string plot;
  bool json = false;
  bool quiet = false;
  bool no_search = false;
  std::string key_family = "scalar";
  std::string value_family = "scalar";
  std::string sketch = "orthogonal";
  std::string sketch_rule = "unbiased";
  std::string rotation = "hadamard";
  std::string key_rule = "unbiased";
  std::string value_rule = "unbiased";
  std::string device = "cpu";
  Options options;
};

// "0,2-5" -> 0 2 3 4 5
std::vector<int> parse_layers(const std::string& text) {
  std::vector<int> layers;
  const auto wrong = [&] {
    return CLI::ValidationError("--layers", "'" + text + "' is not a list like 0,2-5");
  };
  const auto number = [&](const std::string& digits) {
    if (digits.empty() || digits.size() > 4 || digits.find_first_not_of("0123456789") != std::string::npos)
      throw wrong();
    return std::stoi(digits);
  };
  size_t at = 0;
  while (!text.empty() && at <= text.size()) {
    const size_t comma = std::min(text.find(',', at), text.size());
    const std::string part = text.substr(at, comma - at);
    const size_t dash = part.find('-');
    const int first = number(part.substr(0, dash));
    const int last = dash == std::string::npos ? first : number(part.substr(dash + 1));
    if (last < first) throw wrong();
    for (int layer = first; layer <= last; ++layer) layers.push_back(layer);
    at = comma + 1;
  }
  return layers;
}

// What is wrong with the text of a limit, "" if nothing is.
std::string check_limit(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (!text.empty() && *end == '\0' && std::isfinite(value) && value >= 0) return "";
  return "'" + text + "' is not a finite number from 0 up";
}

// What options say of files together: none may name the file that the program reads.
void check_files(const EvalArguments& arguments) {
  if (arguments.calibrations.size() > 1 && !arguments.cheapest)
    throw CLI::ValidationError("--calibration", "one file, unless there is --cheapest");
  if (arguments.plot.empty()) return;
  const auto refuse = [&](const std::string& file, const char* what) {
    if (same_file(arguments.plot, file))
      throw CLI::ValidationError("--plot", "'" + arguments.plot + "' is " + what + ", '" + file + "'");
  };
  refuse(arguments.capture, "the capture itself");
  for (const std::string& file : arguments.calibrations) refuse(file, "a calibration");
}

void add_choice(CLI::App* app, const char* name, std::string* value, const Choices& choices,
                const char* help) {
  std::vector<std::string> names;
  for (const auto& [choice, number] : choices) names.push_back(choice);
  app->add_option(name, *value, help)->capture_default_str()->check(CLI::IsMember(names));
}

CLI::App* add_eval(CLI::App& app, EvalArguments& arguments) {
  Options& options = arguments.options;
  const CLI::Validator limit(check_limit, "NUMBER >= 0");
  CLI::App* eval = app.add_subcommand(
      "eval", "Put a captured KV cache through the library and compare with exact float64 attention");
  eval->add_option("capture", arguments.capture,
                   "safetensors: layers.N.key, layers.N.value [kv heads, tokens, dim], layers.N.query [q "
                   "heads, queries, dim], RoPE applied")
      ->required();
  auto* key_bits =
      eval->add_option("--key-bits", arguments.key_bits, "bits of a key code: 1 2 3 4 5 6 8, 16 = raw")
          ->capture_default_str();
  auto* value_bits =
      eval->add_option("--value-bits", arguments.value_bits, "bits of a value code")->capture_default_str();
  add_choice(eval, "--key-family", &arguments.key_family, kFamilies,
             "codes of keys; prod: a bit less and signs of a sketch, 2 3 4 bits; grouped: min/max of "
             "neighbours, 2 3 4 8 bits; trellis: twice the levels, told apart along a chain, 2 3 4 bits");
  add_choice(eval, "--value-family", &arguments.value_family, kFamilies, "and of values");
  eval->add_option("--group-size", options.group_size, "of grouped codes: 16 32 64; 0 = 32")
      ->capture_default_str();
  add_choice(eval, "--sketch", &arguments.sketch, kSketches, "of prod keys");
  add_choice(eval, "--sketch-rule", &arguments.sketch_rule, kSketchRules, "and what it is to do");
  auto* sweep = eval->add_flag("--sweep", arguments.sweep,
                               "K/V = 2/2 3/3 4/4 5/5 6/6 8/8 and 4/2, those that the families have");
  sweep->excludes(key_bits)->excludes(value_bits);
  eval->add_option("--layers", arguments.layers, "only these, as 0,2-5");
  eval->add_option("--calibration", arguments.calibrations,
                   "file of tqkv calibrate, of these layers: centres, and bands of keys at 2, 3 and 4 bits; "
                   "with --cheapest as often as there are files");
  eval->add_flag(
          "--cheapest", arguments.cheapest,
          "instead: of scalar and trellis codes, all widths, centres, bands and layers of calibrations "
          "the fewest bytes that keep --max-kl and --max-error (or the one that is given), as means over "
          "layers")
      ->excludes(key_bits)
      ->excludes(value_bits)
      ->excludes(sweep);
  eval->add_option("--window", options.window, "last tokens kept exact")->capture_default_str();
  eval->add_option("--sinks", options.sinks, "first tokens kept exact")->capture_default_str();
  eval->add_option("--seed", options.seed, "rotation seed")->capture_default_str();
  add_choice(eval, "--rotation", &arguments.rotation, kRotations, "random rotation");
  add_choice(eval, "--key-scale-rule", &arguments.key_rule, kRules, "how the scale of a key is chosen");
  add_choice(eval, "--value-scale-rule", &arguments.value_rule, kRules, "and of a value");
  eval->add_flag("--no-search", arguments.no_search, "encoder without scale search");
  eval->add_option("--page-size", options.page_size, "tokens of a page")->capture_default_str();
  eval->add_option("--threads", options.threads, "0 = all")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  add_choice(eval, "--device", &arguments.device, kDevices, "where the cache lives");
  eval->add_option("--repeats", options.repeats, "timed runs, of which the median is shown")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  eval->add_option("--max-kl", options.max_kl, "recommend a width up to this attention KL")
      ->capture_default_str()
      ->check(limit);
  eval->add_option("--max-error", options.max_error, "and up to this attention-output error")
      ->capture_default_str()
      ->check(limit);
  eval->add_flag("--json", arguments.json, "one JSON document on stdout instead of tables");
  eval->add_option(
      "--plot", arguments.plot,
      "write an SVG of error and KL against stored bytes; with --cheapest of all that was measured, beside "
      "Shannon's limit");
  eval->add_flag("--quiet", arguments.quiet, "no progress on stderr");
  eval->footer(kFooter);
  return eval;
}

// The calibration of a file, if it is of the capture's layers.
std::shared_ptr<Calibrated> open_calibration(const std::string& path, const Capture& capture) {
  auto calibrated = std::make_shared<Calibrated>(path);
  const tq_calibration_config& c = calibrated->config();
  const CaptureShape& shape = capture.shape();
  if (static_cast<size_t>(c.num_layers) != capture.layers().size() || c.num_q_heads != shape.q_heads ||
      c.num_kv_heads != shape.kv_heads || c.head_dim != shape.key_dim || c.value_dim != shape.value_dim)
    throw CaptureError(printable(path) + ": is of " + std::to_string(c.num_layers) + " layers of " +
                       std::to_string(c.num_kv_heads) + " kv heads of " + std::to_string(c.head_dim) +
                       " coordinates, the capture has others");
  return calibrated;
}

// With --cheapest one limit alone, if one is given.
void keep_given_limits(const CLI::App& eval, EvalArguments* arguments) {
  if (!arguments->cheapest) return;
  const bool kl = eval.count("--max-kl") > 0, error = eval.count("--max-error") > 0;
  if (kl && !error) arguments->options.max_error = INFINITY;
  if (error && !kl) arguments->options.max_kl = INFINITY;
}

void run_cheapest(const EvalArguments& arguments, Capture& capture) {
  std::vector<std::shared_ptr<Calibrated>> calibrations;
  for (const std::string& path : arguments.calibrations)
    calibrations.push_back(open_calibration(path, capture));
  Ways ways;
  {
    ProgressLine line(arguments.quiet);
    ways =
        compare_ways(capture, arguments.options, calibrations, arguments.calibrations,
                     [&](int64_t done, int64_t of, const std::string& what) { line.show(done, of, what); });
  }
  if (arguments.json)
    std::cout << ways_json(ways, arguments.options);
  else
    print_ways(std::cout, ways, arguments.options);
  flush_stdout();
  if (!arguments.plot.empty()) write_whole_file("--plot", arguments.plot, ways_plot(ways, capture.path()));
}

void run_eval(EvalArguments& arguments, const std::vector<int>& layers) {
  Options& options = arguments.options;
  options.search = !arguments.no_search;
  options.rotation = kRotations.at(arguments.rotation);
  options.key_family = kFamilies.at(arguments.key_family);
  options.value_family = kFamilies.at(arguments.value_family);
  if (options.key_family == TQ_CODE_PROD) {
    options.sketch = kSketches.at(arguments.sketch);
    options.sketch_rule = kSketchRules.at(arguments.sketch_rule);
  }
  options.key_rule = kRules.at(arguments.key_rule);
  options.value_rule = kRules.at(arguments.value_rule);
  options.device_type = kDevices.at(arguments.device);
  if (arguments.sweep) {
    options.widths = {{2, 2}, {3, 3}, {4, 4}, {5, 5}, {6, 6}, {8, 8}, {4, 2}};
  } else {
    options.widths = {{arguments.key_bits, arguments.value_bits}};
  }
  if (!arguments.plot.empty()) check_output_path("--plot", arguments.plot);
  Capture capture(arguments.capture, layers);
  if (arguments.cheapest) return run_cheapest(arguments, capture);
  if (!arguments.calibrations.empty()) {
    options.calibrated = open_calibration(arguments.calibrations[0], capture);
    for (size_t i = 0; i < capture.layers().size(); i++) options.calibrated_layers[capture.layers()[i]] = i;
  }
  if (arguments.sweep) {
    std::vector<Width> possible;
    for (const Width& width : options.widths)
      if (runs(capture.shape(), options, width)) possible.push_back(width);
    if (!possible.empty()) options.widths = possible;  // else the library says why
  }
  Evaluation evaluation;
  {
    ProgressLine line(arguments.quiet);
    evaluation = evaluate(capture, options, [&](int64_t done, int64_t of, const std::string& what) {
      line.show(done, of, what);
    });
  }
  if (arguments.json) {
    std::cout << report_json(evaluation);
  } else {
    print_report(std::cout, evaluation);
  }
  flush_stdout();
  if (!arguments.plot.empty()) write_whole_file("--plot", arguments.plot, svg_plot(evaluation));
}

int run(int argc, char** argv) {
  CLI::App app("tqkv: KV caches as 2-8 bit codes, and attention on the codes");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("tqkv ") + tq_version());
  app.footer(kFooter);
  EvalArguments arguments;
  CLI::App* eval = add_eval(app, arguments);
  CLI::App* info = app.add_subcommand("info", "Version, build, devices, supported shapes, sizes");
  bool info_json = false, info_models = false;
  info->add_flag("--json", info_json, "one JSON document on stdout");
  info->add_flag("--models", info_models, "instead: layers of public models and the bytes of their caches");
  CLI::App* validate = app.add_subcommand(
      "validate",
      "Measure the claims of the paper, of other implementations and of tqkv: becomes python3 (or "
      "TQKV_PYTHON) -m tqkv.validate, whose --help has the options");
  validate->set_help_flag();  // it is the package that has help
  validate->prefix_command();
  const CacheCommand cache(app, kFooter);
  const CalibrateCommand calibrate(app, kFooter);
  std::vector<int> layers;
  try {
    app.parse(argc, argv);
    cache.check();
    calibrate.check();
    layers = parse_layers(arguments.layers);
    check_files(arguments);
    keep_given_limits(*eval, &arguments);
  } catch (const CLI::ParseError& error) {
    std::ostringstream complaint;
    const bool asked_for_help = app.exit(error, std::cout, complaint) == 0;
    std::cerr << printable(complaint.str(), true);
    if (!asked_for_help) return kExitUsage;
    close_stdout();
    return 0;
  }
  if (*validate) run_validate(validate->remaining());
  cache.run();
  calibrate.run();
  if (*eval) run_eval(arguments, layers);
  if (*info) (info_models ? print_models : print_info)(std::cout, info_json);
  close_stdout();
  return 0;
}

int complain(int code, const std::exception& error) {
  std::cerr << "tqkv: " << printable(error.what(), true) << "\n";
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const PythonError& error) {
    return complain(kExitNoPython, error);
  } catch (const SavedError& error) {
    return complain(kExitFile, error);
  } catch (const SafetensorsError& error) {
    return complain(kExitFile, error);
  } catch (const CaptureError& error) {
    return complain(kExitCapture, error);
  } catch (const LibraryError& error) {
    return complain(kExitLibrary, error);
  } catch (const WriteError& error) {
    return complain(kExitOutput, error);
  } catch (const std::exception& error) {
    return complain(kExitUnexpected, error);
  }
}
