# SPDX-License-Identifier: Apache-2.0
# An environment with torch for tests on the CPU, in the user's cache; sourced by environment.sh here and in
# tests/vllm. bash.
#
# The registry's torch for Linux is linked to 3 GB of CUDA libraries, which a CPU run loads and never calls.
# In their place come empty ones (standins.py).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../packaging/deps.sh"
trap 'rm -f "$tq_log"' EXIT

# torch_venv name what torch requirements check [package...] : prints the interpreter, or fails with a text
# that names `what`. Packages come without what they ask for; check is a line of Python that must run. Made
# again when one of the arguments or files changes.
torch_venv() {
  local venv=$tq_cache/$1 what=$2 torch=$3 requirements=$4 check=$5 stamp install
  local standins
  standins=$(dirname "${BASH_SOURCE[0]}")/standins.py
  stamp=$({ printf '%s\n' "$@"; cat "$requirements" "$standins"; } | sha256sum | cut -c1-16)
  shift 5
  install="$venv/bin/python -m pip install --quiet --disable-pip-version-check"
  if [ ! -f "$venv/$stamp" ]; then
    mkdir -p "$tq_cache"
    {
      python3 -m venv --clear "$venv" && $install --no-deps "torch==$torch" &&
        $install -r "$requirements" && { [ $# = 0 ] || $install --no-deps "$@"; } &&
        "$venv/bin/python" "$standins" && "$venv/bin/python" -c "$check; torch.ones(8, 8) @ torch.ones(8, 8)"
    } >"$tq_log" 2>&1 || {
      echo "$what could not be installed into $venv:" >&2
      tail -n 5 "$tq_log" >&2
      return 1
    }
    touch "$venv/$stamp"
  fi
  echo "$venv/bin/python"
}
