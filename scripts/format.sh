#!/usr/bin/env bash
# `npm run format`: brings all sources into the form that `npm run check` asks for. C++ only where clang-format is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
npx --no-install biome format --write
cargo fmt --all
if command -v clang-format >/dev/null; then
  clang-format -i native/src/*.cc native/src/*.h
else
  echo 'C++ is left as it is: clang-format is not installed' >&2
fi
