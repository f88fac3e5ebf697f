#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiler launcher for nvcc: asks for registers and spills and keeps what the compiler prints in OBJECT.log,
# so that the log is as old as the object whatever was rebuilt.
object=""
for ((i = 1; i < $#; i++)); do
  [ "${!i}" != -o ] || { next=$((i + 1)) && object=${!next}; }
done
case $object in
  *.o) ;;
  *) exec "$@" ;;
esac
"$@" -Xptxas=-v >"$object.log" 2>&1
status=$?
cat "$object.log"
exit $status
