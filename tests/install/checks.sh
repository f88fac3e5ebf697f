# SPDX-License-Identifier: Apache-2.0
# check and same, for the scripts of tests/install that print "ok - " and "not ok - " lines; bad is 1 once
# something failed. bash, sourced.
bad=0
check() { # check title command...
  local title=$1 text
  shift
  if text=$("$@" 2>&1); then
    echo "ok - $title"
  else
    echo "not ok - $title"
    echo "$text" | tail -n 15
    bad=1
  fi
}
same() { [ "$1" = "$2" ] || { printf 'expected %s\ngot      %s\n' "$2" "$1"; return 1; }; }
