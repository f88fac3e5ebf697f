#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A known fault for each suite of tests/run.sh, of the kind that the suite is there for: whether it is seen.

    tests/mutation/canaries.py [SUITE...] [--jobs N]

Faults of PROGRAMS are compiled into that one program and run with the objects of the others (apart.py). Those
of SUITES are put into a copy of the sources (build/canaries, kept for its builds), where tests/run.sh --quick
runs the suite: it must count a failure that is not a build's. A suite that skips what it should have seen, or
a fault that does not compile, is a miss. Prints "ok - " or "not ok - " a suite; exit status 1 after a miss.
On a schedule: before a release, and when a suite is rewritten. None for cuda-compile (half an hour of
compiling that judges registers and spills) and vllm (an hour of an engine's starts). Standard library only.
"""
import argparse
import os
import re
import subprocess
import sys
import time

from apart import Base, Bench, read
from mutants import ROOT

TREE = os.path.join(ROOT, "build", "canaries")
CASES = os.path.join(ROOT, "tests/contract/cases.json")
# suite: ((program, argument...), file, what is replaced, by what)
PROGRAMS = {
    "unit": (("unit_tests", "--gtest_filter=PageTable*"), "src/page_table.cpp",
             "if (--references_[page] == 0) free_", "if (true) free_"),
    "conformance": (("conformance_tests", "--gtest_filter=*/avx2"), "src/cpu/attend_rows.cpp",
                    "merge_weights(row.total, row.split)", "merge_weights(row.split, row.total)"),
    "golden": (("golden_encode_tests", ), "src/format/encode.h", "if (rule == ScaleRule::kLs) return",
               "if (rule == ScaleRule::kPaper) return"),
    "capi": (("capi_tests", ), "src/sequences.cpp", "first >= 0 && first <= length", "first <= length"),
    "contract": (("run_contract", CASES), "src/state_fields.cpp", "chains.add(kSeed, is.seed);", ";"),
    "model": (("model_tests", ), "src/sequence_table.cpp", "rows_[slot].generation == generation", "true"),
    "incidents": (("incident_tests", ), "src/sequences.cpp", "count >= 0 && count <= length - first",
                  "count <= length - first"),
    "traffic": (("traffic_tests", ), "src/sequences.cpp",
                "  scrub_uncleared(stream);  // the sequence's own may be among them\n", ""),
    "oom": (("oom_tests", ), "src/batch.cpp", "  arrays_.seen[slot] = plan_calls_;",
            "  volatile int* seen = new int;\n*seen = 1;\ndelete seen;\narrays_.seen[slot] = plan_calls_;"),
}
# suite: (file, what is replaced, by what)
SUITES = {
    "tidy": ("src/gate.cpp", "// SPDX-License-Identifier: Apache-2.0\n", ""),
    "format": ("src/gate.cpp", "#include", "#include  "),
    "header": ("include/tqkv.h", "typedef struct tq_cache tq_cache;", "struct tq_cache;"),
    "reference": ("tests/reference/rotation.py", "2 * _ln(q)", "3 * _ln(q)"),
    "python": ("bindings/python/tqkv/state.py", "must be 16 .. 64", "must be good"),
    "validate": ("src/format/encode.h", "if (rule == ScaleRule::kLs) return",
                 "if (rule == ScaleRule::kPaper) return"),
    "rust": ("bindings/rust/tqkv/src/cache.rs", "let _ = self.destroy();", ""),
    "go": ("bindings/go/cache.go", "length = int64(raw)", "length = int64(raw) + 1"),
    "layout": ("include/tqkv.h", "  int32_t group;            /* layers",
               "  int64_t group;            /* layers"),
    "state": ("bindings/python/tqkv/state.py", "        os.rename(beside, path)\n",
              "        open(path, 'wb').write(open(beside, 'rb').read())\n"),
    "cli": ("src/cli/safetensors.cpp", "if (begin > end) return", "if (false) return"),
    "symbols": ("CMakeLists.txt", "-Wl,-z,now ", ""),
    "abi": ("include/tqkv.h", "  int32_t group;            /* layers",
            "  int64_t group;            /* layers"),
    "asan": ("src/page_table.cpp", "if (--references_[page] == 0) free_",
             "if (--references_[page + (1 << 24)] == 0) free_"),
    "tsan": ("src/cpu/thread_pool.cpp",
             "    std::unique_lock<std::mutex> lock(mutex_);\n    open_ = false;",
             "    open_ = false;\n    std::unique_lock<std::mutex> lock(mutex_);"),
    "fuzz": ("src/cli/safetensors.cpp", "std::vector<uint8_t> bytes(tensor.bytes);",
             "std::vector<uint8_t> bytes(tensor.bytes / 2);"),
    "clang-tidy": ("src/page_table.cpp", "namespace tq {\n",
                   "namespace tq {\nint unseen(std::vector<int> x);\nint unseen(std::vector<int> x) {\n"
                   "  std::vector<int> y = std::move(x);\n  return int(x.size() + y.size());\n}\n"),
    "models": ("src/cli/models.cpp", "window - 1 + kPlanTokens", "window + kPlanTokens"),
    "hf": ("bindings/python/tqkv/transformers/_cache.py", "return window - 1 + query_length",
           "return window + query_length"),
    "metadata": ("bindings/python/tqkv/vllm/_backend.py", "seq_lens[request], position + 1)",
                 "seq_lens[request], position)"),
    "eval": ("bindings/python/tqkv/eval/_stats.py", "2.0 * sum(math.comb", "1.0 * sum(math.comb"),
    "distributed": ("bindings/python/tqkv/distributed.py", "% self.world == self.rank]",
                    "% self.world != self.rank]"),
    "torch": ("bindings/python/tqkv/torch/tensors.h", "if (!tensor.is_contiguous())", "if (false)"),
    "install": ("packaging/tqkv.pc.in", "-ltqkv", "-ltqk"),
    "deb": ("packaging/tqkv.pc.in", "-ltqkv", "-ltqk"),
    "bench": ("tests/bench/cpu_bench.cpp", 'printf("\\n  ]\\n}\\n");', 'printf("\\n  ]\\n");'),
    "readme": ("README.md", "[tokens], [1], stream", "[tokens], [2], stream"),
    "testlm": ("src/cpu/attend_rows.cpp", "kLog2E * format::exp2_int(exponent)",
               "kLog2E * format::exp2_int(exponent - 1)"),
    "examples": ("packaging/smoke/decode_loop.txt", "norm 2.680", "norm 2.681"),
    "emulate": ("cuda/merge/kernel.cuh", "weighted(o[r], weights.first) + weighted(next, weights.second)",
                "weighted(o[r], weights.second) + weighted(next, weights.first)"),
}
# What narrows a suite to what its fault is in (the whole one takes half an hour), or a build to what it uses.
NARROWED = {"emulate": {"TQKV_EMULATED": "backend_test"}, "metadata": {"TQKV_TEST_TARGET": "tqkv"}}


def prepared():
    """The copy of the sources, as they are, with a git of its own, which lists them; builds in it stay."""
    os.makedirs(TREE, exist_ok=True)
    subprocess.run(["git", "init", "-q"], cwd=TREE, check=True)
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        source, target = os.path.join(ROOT, name), os.path.join(TREE, name)
        if not os.path.isfile(source):
            continue
        with open(source, "rb") as file:
            content = file.read()
        if not os.path.exists(target) or open(target, "rb").read() != content:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as file:
                file.write(content)
            os.chmod(target, os.stat(source).st_mode)


def faulty(name, old, new):
    text = read(name)
    if old not in text or old == new:
        sys.exit(f"canaries.py: '{old}' is not in {name} any more")
    return text.replace(old, new, 1)


def told(good, suite, name, what, began):
    took = f"{time.time() - began:.0f} s"
    print(f"{'ok' if good else 'not ok'} - {suite}: {name}: {what} in {took}", flush=True)
    return good


def by_program(suite, bench):
    program, name, old, new = PROGRAMS[suite]
    began, seen = time.time(), bench.judge(name, faulty(name, old, new), [program])
    what = "does not compile" if seen is None else "is seen" if seen else "is NOT seen"
    return told(bool(seen), suite, name, what, began)


def by_suite(suite):
    name, old, new = SUITES[suite]
    path, began = os.path.join(TREE, name), time.time()
    text = faulty(name, old, new)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    try:
        done = subprocess.run(["tests/run.sh", "--quick", suite], cwd=TREE, text=True, errors="replace",
                              env={**os.environ, **NARROWED.get(suite, {})},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    finally:
        with open(path, "w", encoding="utf-8") as file:
            file.write(read(name))
    counts = re.search(r"(\d+) passed, (\d+) failed, (\d+) skipped\s*$", done.stdout)
    failed = int(counts.group(2)) if counts else 0
    if "does not build" in done.stdout:
        return told(False, suite, name, "does not build", began)
    return told(failed > 0, suite, name, f"is seen, {failed} failed" if failed else "is NOT seen", began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suite", nargs="*", help="default: all")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("TQKV_JOBS", os.cpu_count() or 1)))
    options = parser.parse_args()
    chosen = options.suite or [*PROGRAMS, *SUITES]
    unknown = [suite for suite in chosen if suite not in PROGRAMS and suite not in SUITES]
    if unknown:
        sys.exit(f"canaries.py: none for {', '.join(unknown)}; there are: {', '.join([*PROGRAMS, *SUITES])}")
    quick = [suite for suite in chosen if suite in PROGRAMS]
    good = []
    if quick:
        bench = Bench(Base(options.jobs, [PROGRAMS[suite][0] for suite in quick]), "canary")
        good += [by_program(suite, bench) for suite in quick]
    if len(quick) < len(chosen):
        prepared()
        good += [by_suite(suite) for suite in chosen if suite in SUITES]
    print(f"{sum(good)} canaries seen, {len(good) - sum(good)} not")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
