# SPDX-License-Identifier: Apache-2.0
# The suites of tests/run.sh: about_X prints one line, suite_X runs it with the helpers defined there. bash.

build_test() { need_build test dev ${TQKV_TEST_TARGET:+--target=$TQKV_TEST_TARGET}; }
# Sanitized: some instruction sets, unless long suites are asked for.
few_isas() { if [ -n "${TQKV_TEST_LONG:-}" ]; then echo -DTQ_FEW_ISAS=OFF; else echo -DTQ_FEW_ISAS=ON; fi; }
build_asan() {
  need_build asan asan "${sanitized[@]/#/--target=}" --target=golden_encode_tests --target=oom_tests \
    "$(few_isas)"
}
build_tsan() {
  need_build tsan tsan --target=thread_tests --target=capi_tests --target=conformance_tests "$(few_isas)"
}

sanitized=(unit_tests conformance_tests golden_library_tests capi_tests model_tests thread_tests
  incident_tests traffic_tests)

# C++ and CUDA sources, tracked or new; of a source archive without git: all. Headers of C++ that are laid out
# by hand or generated are left out.
own_sources() {
  { git ls-files -co --exclude-standard 2>/dev/null || find src cuda tests packaging bindings -type f; } |
    grep -E '\.(h|c|cpp|cu|cuh)$' | grep -vE '(^|/)(tqkv|tables)\.h$' |
    while read -r file; do [ -f "$file" ] && echo "$file"; done | sort -u
}

about_tidy() { echo "tidy: include graph, size budgets, banned words, file heads; register of incidents"; }
suite_tidy() {
  run_tap "rules" python3 tests/tidy.py
  run_tap "rules object to what breaks them" python3 tests/tidy.py --self-test
  run_tap "register of incidents" python3 tests/incidents/check.py
  run_tap "its check objects" python3 tests/incidents/check.py --self-test
}

about_format() { echo "format: clang-format of C++ and CUDA, but the public header and generated tables"; }
suite_format() {
  need_command clang-format clang-format || return 0
  local file
  # All at once; one by one only to tell which.
  if own_sources | xargs -n 50 -P "$(nproc)" clang-format --dry-run -Werror >/dev/null 2>&1; then
    pass "$(own_sources | wc -l)"
    return
  fi
  for file in $(own_sources); do
    if clang-format --dry-run -Werror "$file" >"$out/format.log" 2>&1; then pass; else
      fail "$file is not formatted: clang-format -i $file"
      head -n 4 "$out/format.log" | sed 's/^/   | /'
    fi
  done
}

about_header() { echo "header: tqkv.h alone, C99 .. C++20, gcc and clang; what the bindings make of it"; }
suite_header() {
  run_tap "compile matrix" tests/install/header.sh
  run_check "bindings regenerate" python3 bindings/generate.py --check
  run_tap "the generator objects to what it does not understand" python3 bindings/generate.py --self-test
}

about_unit() { echo "unit: parts of the core and the format, property tests"; }
suite_unit() { build_test && run_gtest unit build/test/tests/unit_tests; }

# Instruction sets of this machine, as the library names them.
cpu_isas() {
  build/test/tqkv info --json | python3 -c 'import json,sys; print(*json.load(sys.stdin)["cpu"]["isas"])'
}

about_conformance() { echo "conformance: the CPU backend against the scalar definition"; }
suite_conformance() {
  build_test || return
  local full=1
  [ -n "${TQKV_TEST_QUICK:-}" ] && full=0
  TQKV_TEST_FULL=$full run_shards conformance build/test/tests/conformance_tests
}

about_golden() { echo "golden: C++ against the NumPy oracle's vectors, on each instruction set here"; }
suite_golden() {
  build_test || return
  local isa
  run_gtest golden/encode build/test/tests/golden_encode_tests
  for isa in $(cpu_isas); do
    TQKV_CPU_ISA=$isa run_gtest "golden/library $isa" build/test/tests/golden_library_tests
  done
}

about_reference() { echo "reference: the NumPy oracle's own tests; codebooks and golden files made again"; }
suite_reference() {
  run_pytest reference tests/reference
  need_python || { skip "regenerate" "$python_trouble"; return; }
  run_check "codebooks regenerate" "$python" codebooks/generate.py --check
  run_check "golden files regenerate" "$python" tests/golden/generate.py --check
}

about_capi() { echo "capi: the C API used and misused from C99, once for every instruction set here"; }
suite_capi() {
  build_test || return
  local isa
  for isa in $(cpu_isas); do TQKV_CPU_ISA=$isa run_gtest "capi $isa" build/test/tests/capi_tests; done
}

about_incidents() { echo "incidents: what went wrong elsewhere, where no other suite tries it"; }
suite_incidents() { build_test && run_gtest incidents build/test/tests/incident_tests; }

about_traffic() { echo "traffic: a day of requests on a clock of its own; tenants leave no byte behind"; }
suite_traffic() { build_test && run_gtest traffic build/test/tests/traffic_tests; }

about_model() { echo "model: 200,000 random operations against a plain reference model; threads"; }
suite_model() {
  build_test || return
  together \
    "run_gtest model build/test/tests/model_tests" \
    "run_gtest 'model, other worlds' build/test/tests/model_tests --first-world=1000001" \
    "run_gtest threads build/test/tests/thread_tests"
}

about_oom() { echo "oom: every allocation made to fail, state unchanged, nothing leaked"; }
suite_oom() { build_test && run_gtest oom build/test/tests/oom_tests; }

about_contract() { echo "contract: the cases that every binding runs too, from C++; their file made again"; }
suite_contract() {
  build_test || return
  run_tap "contract cases" build/test/tests/run_contract tests/contract/cases.json
  need_python || { skip "contract regenerates" "$python_trouble"; return; }
  run_check "contract cases regenerate" "$python" tests/contract/generate.py --check
}

about_python() { echo "python: header, contract cases, every kind of array; its wheel built offline"; }
suite_python() {
  build_test || return
  TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0 run_pytest "python package" bindings/python/tests
  need_python || { skip "wheel" "$python_trouble"; return; }
  run_tap "wheel" bindings/python/tests/wheel.sh "$python"
}

about_validate() { echo "validate: claims of the paper and of others, measured; broken codecs noticed"; }
suite_validate() {
  build_test || return
  need_python || { skip validate "$python_trouble"; return; }
  local form=--quick
  [ -z "${TQKV_TEST_LONG:-}" ] || form=
  # One thread of BLAS: its matrices are small, and the library has threads of its own.
  export OPENBLAS_NUM_THREADS=1 TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0
  # shellcheck disable=SC2086
  PYTHONPATH=bindings/python run_check "tqkv.validate $form" \
    "$python" -m tqkv.validate $form --json "$out/validate.json" --markdown "$out/validate.md"
  run_pytest "broken codecs, the command" tests/validate
  unset OPENBLAS_NUM_THREADS TQKV_LIBRARY
}

about_rust() { echo "rust: formatting, lints, documentation, contract cases loaded and linked, packages"; }
suite_rust() {
  need_command rust cargo || return 0
  build_test && TQKV_RUST_QUICK=${TQKV_TEST_QUICK:-} \
    run_tap "rust crates" bindings/rust/run_tests.sh "$PWD/build/test/libtqkv.so"
}

about_go() { echo "go: vet, contract cases, race detector, loaded and linked, as a module by itself"; }
suite_go() {
  need_command go go || return 0
  build_test && TQKV_GO_QUICK=${TQKV_TEST_QUICK:-} \
    run_tap "go package" bindings/go/run_tests.sh "$PWD/build/test/libtqkv.so"
}

about_layout() { echo "layout: sizes, offsets and constants of tqkv.h against the golden table"; }
suite_layout() {
  build_test && run_check "layout table" diff tests/capi/layout.txt <(build/test/tests/layout)
}

about_cli() { echo "cli: the program tqkv, its tables, JSON and errors"; }
suite_cli() {
  build_test && TQKV_TOOL=$PWD/build/test/tqkv TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0 \
    run_pytest cli tests/cli
}

about_models() { echo "models: layers of public models: bytes of their caches, attention against float64"; }
suite_models() {
  build_test && TQKV_TOOL=$PWD/build/test/tqkv TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0 \
    run_pytest models tests/models
}

about_hf() { echo "hf: Transformers' generate() on a TurboCache: tiny models of 20 architectures"; }
suite_hf() {
  build_test || return
  local hf
  hf=$(tests/hf/environment.sh 2>"$out/hf.log") || { skip hf "$(xargs <"$out/hf.log")"; return; }
  TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0 pytest_python=$hf run_pytest transformers tests/hf
}

about_metadata() { echo "metadata: vLLM's own metadata for the builder and attention class, no engine"; }
suite_metadata() {
  build_test || return
  local hf files
  hf=$(tests/hf/environment.sh 2>"$out/metadata.log") &&
    files=$(tests/vllm/files.sh "$hf" 2>"$out/metadata.log") ||
    { skip metadata "$(xargs <"$out/metadata.log")"; return; }
  TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0 PYTHONPATH=$files pytest_python=$hf \
    run_pytest "vLLM's metadata" tests/vllm/test_metadata.py
}

about_vllm() { echo "vllm: vLLM's CPU engine on codes: chunks, drafts, hits, preemptions (on demand)"; }
suite_vllm() {
  build_test || return
  local vllm limit=3600 # some 20 starts of the engine
  vllm=$(tests/vllm/environment.sh 2>"$out/vllm.log") || { skip vllm "$(xargs <"$out/vllm.log")"; return; }
  TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0 pytest_python=$vllm run_pytest vllm tests/vllm
}

about_canaries() { echo "canaries: a known fault for each suite, which it must see (on demand, hours)"; }
suite_canaries() {
  local limit=36000
  run_tap "canaries" python3 tests/mutation/canaries.py
}

about_distributed() { echo "distributed: tensor and context parallelism on 1-4 gloo processes, against one"; }
suite_distributed() {
  build_test || return
  local hf
  hf=$(tests/hf/environment.sh 2>"$out/distributed.log") ||
    { skip distributed "$(xargs <"$out/distributed.log")"; return; }
  TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0 pytest_python=$hf run_pytest "several ranks" tests/distributed
}

about_eval() { echo "eval: tqkv.eval on a model made by construction: tasks, controls, statistics, report"; }
suite_eval() {
  build_test || return
  local hf
  hf=$(tests/hf/environment.sh 2>"$out/hf.log") || { skip eval "$(xargs <"$out/hf.log")"; return; }
  OMP_NUM_THREADS=1 TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0 pytest_python=$hf run_pytest eval tests/eval
}

about_torch() { echo "torch: torch.ops.tqkv against the package's calls, opcheck, torch.compile, turns"; }
suite_torch() {
  build_test || return
  local hf
  hf=$(tests/hf/environment.sh 2>"$out/torch.log") || { skip torch "$(xargs <"$out/torch.log")"; return; }
  export TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0 XDG_CACHE_HOME=$PWD/build/test/cache
  TORCHINDUCTOR_CACHE_DIR=$out/inductor pytest_python=$hf run_pytest "torch operators" tests/torch
  run_check "bench of calls" "$hf" tests/bench/python_calls.py --quick
  unset TQKV_LIBRARY XDG_CACHE_HOME
}

about_testlm() { echo "testlm: a language model on a quantised cache (../shared/testlm or TQKV_TESTLM)"; }
suite_testlm() { build_test && TQKV_LIBRARY=$PWD/build/test/libtqkv.so run_pytest testlm tests/testlm; }

about_state() { echo "state: saved sequences by an independent reader; damage, SIGKILL, crashes in saves"; }
suite_state() {
  build_test && TQKV_TOOL=$PWD/build/test/tqkv TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0 \
    run_pytest state tests/state
}

about_symbols() { echo "symbols: exports, SONAME, RELRO and friends; loaded 1,000 times, without a driver"; }
suite_symbols() {
  need_command symbols readelf || return 0
  build_test || return
  run_tap "library hygiene" python3 tests/install/symbols.py build/test/libtqkv.so
  run_tap "1,000 times loaded" tests/install/loading.sh build/test/libtqkv.so
  # As the suite cuda-compile, which builds it and does the same, left it.
  if [ -f build/cuda/libtqkv.so ]; then
    run_tap "CUDA build without a driver" tests/install/loading.sh build/cuda/libtqkv.so --cuda
  fi
}

about_abi() { echo "abi: symbols, arguments and structs against the committed baseline, by libabigail"; }
suite_abi() { build_test && run_tap "abidiff" packaging/abi/update.sh --check build/test/libtqkv.so; }

about_install() { echo "install: moved; consumers by pkg-config, find_package and dlopen; same bytes twice"; }
suite_install() {
  build_test || return
  run_tap "install" tests/install/install.sh build/test
  run_tap "one version number" python3 tests/install/version.py build/test
}

about_deb() { echo "deb: Debian packages: contents, lintian; installed, used and purged in a root"; }
suite_deb() { run_tap "Debian packages" tests/install/deb.sh build/deb; }

about_examples() { echo "examples: the decode loop in four languages; an engine's loop, tensors, a server"; }
suite_examples() { build_test && run_tap "examples" tests/examples.sh build/test; }

about_readme() { echo "readme: the examples of README.md and the header run, generated tables up to date"; }
suite_readme() {
  build_test || return
  need_python || true # its NumPy takes torch's place in the Python example, else that is only compiled
  run_tap "README.md" "${python:-python3}" tests/readme.py build/test
}

about_bench() { echo "bench: the benches run and print JSON (quick; no timing is judged)"; }
suite_bench() {
  build_test || return
  run_check "cpu_bench --quick" \
    bash -c "set -o pipefail; build/test/tests/cpu_bench --quick | python3 -m json.tool"
  need_python || { skip "GPU bench, what needs no GPU" "$python_trouble"; return; }
  TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0 \
    run_check "GPU bench, what needs no GPU" "$python" tests/bench/gpu/bench.py --self-check
  TQKV_LIBRARY=$PWD/build/test/libtqkv.so.0 \
    run_check "nearest neighbours --quick" "$python" tests/bench/quantizer/bench.py --quick
}

# The CUDA toolkit: one that is installed, or its wheels, where CMake finds them too. Sets nvcc and
# cuda_libraries (nvcc's option); false, and a skip, if there is none.
cuda_tools() { # suite
  local tools
  cuda_libraries=()
  nvcc=$(command -v nvcc) && return 0
  if need_python && tools=$(TQKV_PYTHON=$python packaging/cuda_toolkit.sh 2>"$out/cuda_toolkit.log"); then
    nvcc=$tools/nvidia/cu13/bin/nvcc cuda_libraries=("-L$tools/nvidia/cu13/lib")
  else
    local why
    why=$(tail -n 1 "$out/cuda_toolkit.log" 2>/dev/null)$python_trouble
    skip "$1" "no nvcc, and packaging/cuda_toolkit.sh could not install one: $why"
    return 1
  fi
}

about_cuda_compile() { echo "cuda-compile: the library under nvcc, one architecture; registers, spills"; }
suite_cuda_compile() {
  cuda_tools cuda-compile || return
  "$nvcc" --version | sed -n 's/^Cuda compilation/   &/p'
  run_check "format headers, sm_90" "$nvcc" -std=c++17 -arch=sm_90 --expt-relaxed-constexpr -Isrc -I. \
    -Xcompiler=-Wall,-Wextra,-ffp-contract=off \
    -Werror all-warnings "${cuda_libraries[@]}" -c tests/install/format_nvcc.cu -o "$out/format_nvcc.o"
  run_check "racecheck reports, judged" python3 tests/gpu/racecheck_report.py --self-check
  # Kernels that no check below judges are hardly optimised, unless long suites are asked for; warnings are
  # errors, as in build/test, so that ccache knows what it compiled there.
  local check=ON
  [ -z "${TQKV_TEST_LONG:-}" ] || check=OFF
  need_build cuda release --target=tqkv --target=kernel_logs -DTQ_CUDA=ON -DTQ_CUDA_ARCHS=90a-real \
    -DTQ_CUDA_LOGS=ON -DTQ_CUDA_CHECK=$check -DCMAKE_COMPILE_WARNING_AS_ERROR=ON || return
  pass
  run_check "registers and spills of the attend kernels" \
    python3 tests/gpu/check_resources.py --list build/cuda/kernels.log
  run_tap "library hygiene with CUDA" python3 tests/install/symbols.py build/cuda/libtqkv.so --cuda
  run_tap "CUDA build without a driver" tests/install/loading.sh build/cuda/libtqkv.so --cuda
}

about_emulate() { echo "emulate: CUDA sources on the CPU: against float64, and the library's backends"; }
suite_emulate() {
  cuda_tools emulate || return
  local seed at orders="0 3" append_orders="0 1" model=
  [ -n "${TQKV_TEST_QUICK:-}${TQKV_TEST_LONG:-}" ] || model=--ops=40000
  need_build emulate emulate "--target=${TQKV_EMULATED:-gpu_programs}" || return
  pass
  # The longest first, so that none of them is alone at the end.
  local calls=(
    "run_counted layers_test build/emulate/layers_test --quick"
    "run_counted 'attend_test --rows' build/emulate/attend_test --rows --quick"
    "run_counted 'attend_test --edges' build/emulate/attend_test --edges --quick"
    "run_counted 'attend_test --few' build/emulate/attend_test --few 260 1"
  )
  if [ -n "${TQKV_TEST_LONG:-}" ]; then
    calls+=("run_counted 'conformance_test, every configuration' build/emulate/conformance_test --quick")
  else
    for at in 0 5; do
      calls+=("run_counted 'conformance_test, configuration $at' \
        build/emulate/conformance_test --quick $at 1")
    done
  fi
  calls+=(
    "run_counted 'modes_test, one configuration' build/emulate/modes_test 10 1"
    "run_counted 'modes_test, trellis codes' build/emulate/modes_test 28 1"
    "run_counted 'modes_test, keys in bands' build/emulate/modes_test 46 1"
    "run_counted 'move_test --quick' build/emulate/move_test --quick"
    "run_counted 'once_test --quick' build/emulate/once_test --quick"
    "run_counted 'state_test --quick' build/emulate/state_test --quick"
    "run_counted 'paged_test --small' build/emulate/paged_test --small"
    "run_counted 'paged_test --latent' build/emulate/paged_test --latent"
    "run_counted 'latent_test --tiny' build/emulate/latent_test --tiny"
    "run_counted growth_test build/emulate/growth_test"
    "run_gtest 'model, copies by way of CUDA' \
      env TQKV_MODEL_AWAY=cuda build/emulate/tests/model_tests $model"
    "run_counted calibration_test build/emulate/calibration_test"
    "run_counted 'vectors_test --small' build/emulate/vectors_test --small"
    "run_counted 'faults_test, every CUDA call and allocation' build/emulate/faults_test"
  )
  if [ -n "${TQKV_TEST_LONG:-}" ]; then
    calls+=("run_counted 'latent_test --tiny, capability 8.0' \
      env TQ_EMULATE_CAPABILITY=80 build/emulate/latent_test --tiny")
    for at in 0 1 2 3; do
      calls+=("run_counted 'streams_test, 25,000 schedules of 100,000, part $at' \
        build/emulate/streams_test 25000 $((at * 10000 + 1))")
    done
  else
    calls+=("run_counted 'streams_test --quick' build/emulate/streams_test --quick")
  fi
  # Warps and lanes in several orders of execution.
  [ -z "${TQKV_TEST_LONG:-}" ] || orders=$(seq 0 15) append_orders=$(seq 0 15)
  for seed in $orders; do
    calls+=("run_counted 'attend_test --small, order $seed' \
      env TQ_EMULATE_SEED=$seed build/emulate/attend_test --small")
  done
  for seed in $append_orders; do
    calls+=("run_counted 'append_test --small, order $seed' \
      env TQ_EMULATE_SEED=$seed build/emulate/append_test --small")
  done
  calls+=(
    "run_counted 'attend_test --each' build/emulate/attend_test --each"
    "run_counted products_test build/emulate/products_test"
    "run_counted 'backend_test --small' build/emulate/backend_test --small"
  )
  if [ -n "${TQKV_EMULATED:-}" ]; then
    readarray -t calls < <(printf '%s\n' "${calls[@]}" | grep -E "/$TQKV_EMULATED( |$)")
    [ ${#calls[@]} -gt 0 ] || { fail "no program of this suite is called '$TQKV_EMULATED'"; return; }
  fi
  together "${calls[@]}"
}

# What sanitizers run is shortened, unless long suites are asked for.
sanitized_env() { if [ -n "${TQKV_TEST_LONG:-}" ]; then echo env; else echo env TQKV_TEST_QUICK=1; fi; }

about_asan() { echo "asan: AddressSanitizer and UBSan over C++ and C suites (short), Rust and Go"; }
suite_asan() {
  build_asan || return
  local test calls=() isas=
  export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:allocator_may_return_null=1
  export UBSAN_OPTIONS=print_stacktrace=1
  # Some instruction sets: what runs over an end does so by the length of vectors. Who computes what changes
  # no end, and of the scalar kernels it would be a third of the time.
  [ -n "${TQKV_TEST_LONG:-}" ] || isas="'--gtest_filter=-*/avx3:*Invariance*/scalar'"
  run_shards "asan conformance_tests" $(sanitized_env) build/asan/tests/conformance_tests $isas
  run_shards "asan unit_tests" $(sanitized_env) build/asan/tests/unit_tests
  for test in "${sanitized[@]}" golden_encode_tests oom_tests; do
    [ "$test" = conformance_tests ] || [ "$test" = unit_tests ] ||
      calls+=("run_gtest 'asan $test' $(sanitized_env) build/asan/tests/$test")
  done
  together "${calls[@]}"
  for test in rust go; do run_tap "asan $test" "bindings/$test/run_tests.sh" build/asan/libtqkv.so; done
}

about_tsan() { echo "tsan: ThreadSanitizer over the allowed concurrency and the thread pool's users"; }
suite_tsan() {
  build_tsan || return
  export TSAN_OPTIONS=halt_on_error=1
  # Of the conformance tests those that use several threads: the others would take the sanitizer's slowdown
  # and show it nothing. Who computes which rows does not depend on the instruction set: one stands for all.
  local chosen='*ThreadPool*:*Invariance*'
  [ -n "${TQKV_TEST_LONG:-}" ] || ! grep -qwE 'avx2|asimd' /proc/cpuinfo || chosen+='-*/avx3:*/scalar'
  run_shards "tsan conformance_tests" $(sanitized_env) build/tsan/tests/conformance_tests \
    "'--gtest_filter=$chosen'"
  together \
    "run_gtest 'tsan thread_tests' $(sanitized_env) build/tsan/tests/thread_tests" \
    "run_gtest 'tsan capi_tests' $(sanitized_env) build/tsan/tests/capi_tests"
}

# CI ends a run after 5,400 s. Searches longer than fuzz_short seconds a target begin before fuzz_late, and
# those of 60 are cut after 900 s together; what is left is for a slow machine's build and replays.
fuzz_short=6 fuzz_late=3000
about_fuzz() { echo "fuzz: libFuzzer, ASan and UBSan: corpora again, then a search in each target"; }
suite_fuzz() {
  tq_has fuzzer:clang++ || { skip fuzz "clang++ -fsanitize=fuzzer does not link"; return; }
  need_build fuzz fuzz --target=fuzz_programs || return
  local seconds=${TQKV_FUZZ_SECONDS:-$fuzz_short} search="--seconds 0"
  if [ -n "${TQKV_TEST_LONG:-}" ]; then
    search="--seconds 60" # somewhere else each time
  elif [ -z "${TQKV_TEST_QUICK:-}" ]; then
    if [ "$seconds" -gt "$fuzz_short" ] && [ "$SECONDS" -gt "$fuzz_late" ]; then
      echo "   searches of $fuzz_short s instead of $seconds: $SECONDS s have passed, more than $fuzz_late"
      seconds=$fuzz_short
    fi
    search="--seconds $seconds --counted --seed 1 --within $((300 + 10 * seconds))" # alike everywhere
  fi
  # shellcheck disable=SC2086
  run_tap "fuzz targets" python3 tests/fuzz/run.py $search
  grep ' executions in ' "$out/fuzz_targets.log" | sed 's/^ok - /   | /'
}

about_clang_tidy() { echo "clang-tidy: bug-finding checks (.clang-tidy) over library and program"; }
suite_clang_tidy() {
  need_command clang-tidy clang-tidy && build_test || return 0
  local all=
  [ -z "${TQKV_TEST_LONG:-}" ] || all=--all
  # shellcheck disable=SC2086
  run_tap clang-tidy python3 tests/clang_tidy.py build/test $all
}
