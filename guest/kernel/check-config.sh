#!/usr/bin/env bash
# Compares a kernel configuration fragment with a final .config: every option of the fragment must
# have survived kconfig's dependencies. Usage: check-config.sh FRAGMENT CONFIG
# Exit status 1 and one line per lost option when not; an option that is absent counts as "n".
set -euo pipefail

if [ $# -ne 2 ]; then
  echo "usage: check-config.sh FRAGMENT CONFIG" >&2
  exit 2
fi

awk '
  { name = ""; }
  /^CONFIG_[A-Za-z0-9_]+=/ { name = substr($0, 1, index($0, "=") - 1); value = substr($0, index($0, "=") + 1) }
  /^# CONFIG_[A-Za-z0-9_]+ is not set$/ { name = $2; value = "n" }
  name == "" { next }
  NR == FNR {
    if (name in wanted) { print name " stands twice in the fragment"; failed = 1 }
    wanted[name] = value; next
  }
  { final[name] = value }
  END {
    for (name in wanted) {
      have = (name in final) ? final[name] : "n"
      if (have != wanted[name]) { print name ": asked for " wanted[name] ", got " have; failed = 1 }
    }
    exit failed
  }' "$1" "$2" >&2
