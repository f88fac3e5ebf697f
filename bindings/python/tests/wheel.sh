#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the wheel without a network, installs it into a fresh environment that has nothing else, and uses it
# there. Prints "ok - what" lines.
#
# Usage: wheel.sh [interpreter]   one that has scikit-build-core (and ninja or make, cmake, a compiler on the
#                                 path); without: python3
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "not ok - $*"
  tail -n 30 "$work/log" 2>/dev/null | sed 's/^/    /'
  exit 1
}
"$python" -c 'import scikit_build_core' 2>/dev/null || {
  echo "skip - wheel: $python has no scikit-build-core"
  exit 0
}

command -v ccache >/dev/null && export CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_CUDA_COMPILER_LAUNCHER=ccache
# Warnings are errors, in a folder beside build/test, so that ccache knows the objects.
root=$(cd "$here/../.." && pwd)
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1
rm -rf "$root/build/wheel"
export CMAKE_BUILD_PARALLEL_LEVEL=${TQKV_JOBS:-$(nproc)} PIP_NO_INDEX=1
"$python" -m pip wheel --disable-pip-version-check --no-build-isolation --no-index --no-deps \
  -w "$work/dist" "$here" \
  --config-settings=build-dir="$root/build/wheel" \
  --config-settings=cmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON \
  --config-settings=cmake.define.TQ_CUDA="${TQ_CUDA:-OFF}" >"$work/log" 2>&1 || fail "pip wheel"
wheel=$(echo "$work"/dist/*.whl)
header=$here/../../include/tqkv.h
version=$(sed -nE 's/^#define TQ_VERSION_(MAJOR|MINOR|PATCH) ([0-9]+)$/\2/p' "$header" | paste -sd.)
case $(basename "$wheel") in
  tqkv-"$version"-py3-none-linux_*.whl | tqkv-"$version"-py3-none-manylinux_*.whl)
    echo "ok - $(basename "$wheel"), $(stat -c %s "$wheel") bytes"
    ;;
  *) fail "the wheel is called $(basename "$wheel")" ;;
esac

"$python" -m zipfile -l "$wheel" | awk 'NR > 1 {print $1}' | sort >"$work/names"
for name in tqkv/libtqkv.so.0 tqkv/__init__.py tqkv/py.typed tqkv/LICENSE tqkv/THIRD_PARTY.md \
  tqkv/torch/{ops,paged,bind}.cpp tqkv/torch/{arguments,tensors,bound,tqkv}.h; do
  grep -qx "$name" "$work/names" || fail "the wheel lacks $name"
done
if grep -vE -e '^tqkv/((transformers|eval|validate|vllm)/)?[a-z_]+\.py$' \
  -e '^tqkv/torch/([a-z_]+\.py|(ops|paged|bind)\.cpp|(arguments|tensors|bound|tqkv)\.h)$' \
  -e '^tqkv/(libtqkv\.so\.0|py\.typed|LICENSE|THIRD_PARTY\.md)$' \
  -e '^tqkv-[0-9.]+\.dist-info/' "$work/names" >"$work/log"; then
  fail "the wheel holds more than it should"
fi
echo "ok - contents"

"$python" -m venv "$work/venv"
installed=$work/venv/bin/python
"$installed" -m pip install --disable-pip-version-check --no-index --quiet "$wheel" >"$work/log" 2>&1 ||
  fail "pip install"
cd "$work" # away from the sources, which Python would import first
find='import importlib.util as u; print(u.find_spec("tqkv").submodule_search_locations[0])'
library=$("$installed" -c "$find")/libtqkv.so.0
if command -v readelf >/dev/null; then
  readelf -d "$library" >"$work/log"
  grep -qE 'libstdc\+\+|libgcc_s|RPATH|RUNPATH' "$work/log" &&
    fail "the library in the wheel needs a C++ runtime or has a run path"
  grep -q 'SONAME.*\[libtqkv.so.0\]' "$work/log" || fail "SONAME"
  echo "ok - the library needs only$(sed -nE 's/.*NEEDED.*\[(.*)\]/ \1/p' "$work/log" | paste -sd,)"
fi

alone() { env -u TQKV_LIBRARY -u PYTHONPATH "$installed" "$@" >"$work/log" 2>&1; }
alone - <<'PYTHON' || fail "ten lines in a fresh environment"
import array, importlib.metadata, sys
import tqkv
assert not {"numpy", "torch"} & set(sys.modules)
assert importlib.metadata.version("tqkv") == tqkv.__version__ == tqkv.library_version()
assert not importlib.metadata.requires("tqkv")
with tqkv.Cache(num_layers=1, num_q_heads=2, num_kv_heads=1, head_dim=32, key_bits=8, value_bits=8,
                max_tokens=64) as cache:
    step, sequence = cache.batch(), cache.sequence()
    step.plan([sequence], [2])
    step.append(0, array.array("f", range(64)), array.array("f", [1.0] * 64))
    out = step.attend(0, array.array("f", [0.5] * 128))
    assert out.shape == (2, 2, 32)
    assert all(0.97 < x < 1.03 for t in out.tolist() for h in t for x in h), out.tolist()
assert tqkv.library_path().startswith(sys.prefix)
PYTHON
echo "ok - import and ten lines without NumPy and torch"
alone -m tqkv || fail "python -m tqkv"
echo "ok - python -m tqkv"
rc=0
"$work/venv/bin/tqkv-validate" --quick >"$work/log" 2>&1 || rc=$?
{ [ "$rc" = 3 ] && grep -q "needs NumPy" "$work/log"; } || fail "tqkv-validate without NumPy: status $rc"
echo "ok - tqkv-validate says that it needs NumPy"
alone "$here/examples/decode_loop.py" || fail "decode_loop.py"
diff "$work/log" "$here/../../packaging/smoke/decode_loop.txt" >/dev/null ||
  fail "decode_loop.py prints something else than decode_loop.txt"
echo "ok - decode_loop.py"
