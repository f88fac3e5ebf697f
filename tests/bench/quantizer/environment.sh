#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints an interpreter that has FAISS and scikit-learn, for bench.py; fails with a text. The environment lies
# in the user's cache.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../../packaging/deps.sh"
trap 'rm -f "$tq_log"' EXIT
venv=$tq_cache/faiss
stamp=$(cat "$here/requirements.txt" "$0" | sha256sum | cut -c1-16)
if [ ! -f "$venv/$stamp" ]; then
  mkdir -p "$tq_cache"
  {
    python3 -m venv --clear "$venv" &&
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt" &&
      "$venv/bin/python" -c 'import faiss, sklearn.datasets'
  } >"$tq_log" 2>&1 || {
    echo "FAISS could not be installed into $venv:" >&2
    tail -n 5 "$tq_log" >&2
    exit 1
  }
  touch "$venv/$stamp"
fi
echo "$venv/bin/python"
