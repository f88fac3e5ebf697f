#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# files.sh PYTHON: prints a folder with vLLM's Python files for the suite metadata, in the user's cache; fails
# with a text. 130 MB to fetch and half a minute the first time.
set -euo pipefail
cd "$(dirname "$0")"
. ../../packaging/deps.sh
trap 'rm -f "$tq_log"' EXIT
folder=$tq_cache/vllm-files
stamp=$({ "$1" -c 'import sys; print(sys.version)'; cat carried.sh files.txt; } | sha256sum | cut -c1-16)
if [ ! -f "$folder/$stamp" ]; then
  rm -rf "$folder"
  ./carried.sh "$folder" "$1" cpu >"$tq_log" 2>&1 || {
    echo "vLLM's files could not be fetched into $folder:" >&2
    tail -n 5 "$tq_log" >&2
    exit 1
  }
  touch "$folder/$stamp"
fi
echo "$folder"
