# Shared by the set-up and build scripts (sourced, never run): where the cache is, how progress and
# failure look, how a result is put in place. All messages go to standard error; standard output is
# for the one path that a script is asked for.

# The cache folder of docs/contracts.md, as an absolute path.
cache_dir() {
  local dir="${CONTAINERD_SHIM_SNP_CACHE:-}"
  if [ -z "$dir" ] && [ -n "${XDG_CACHE_HOME:-}" ]; then dir="$XDG_CACHE_HOME/containerd-shim-snp"; fi
  if [ -z "$dir" ]; then dir="${HOME:-/root}/.cache/containerd-shim-snp"; fi
  case "$dir" in
    /*) printf '%s\n' "$dir" ;;
    *) fail "the cache folder '$dir' is not an absolute path: set CONTAINERD_SHIM_SNP_CACHE to one that starts with /" ;;
  esac
}

# note TEXT: one line of progress.
note() { printf '%s\n' "$*" >&2; }

# fail TEXT: says what is wrong and what to do about it, and ends the script with status 1.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# require_tools "TOOL=PACKAGE ...": fails with the apt-get command for all missing ones at once. A
# TOOL that starts with / is a file that must exist.
require_tools() {
  local pair tool missing=()
  for pair in $1; do
    tool="${pair%%=*}"
    case "$tool" in
      /*) [ -e "$tool" ] || missing+=("${pair#*=}") ;;
      *) command -v "$tool" >/dev/null || missing+=("${pair#*=}") ;;
    esac
  done
  if [ ${#missing[@]} -gt 0 ]; then
    fail "missing Debian packages. Run as root: apt-get update && apt-get install --no-install-recommends -y $(printf '%s\n' "${missing[@]}" | sort -u | tr '\n' ' ')"
  fi
}

# lock FILE SECONDS: holds FILE locked until the script ends, so that two builders take turns. Long
# children are started with {lock_fd}>&- so that one which outlives the script does not keep it.
lock() {
  mkdir -p "$(dirname "$1")"
  exec {lock_fd}>"$1"
  if ! flock -n "$lock_fd"; then
    note "another build holds $1; waiting for it (at most $2 s)"
    flock -w "$2" "$lock_fd" || fail "another build has held $1 for $2 s: see with 'fuser $1' whether it still works, end it, run this again"
  fi
}

# hash_inputs ROOT FILE...: a short name (16 hexadecimal digits) for the files' contents and names
# below ROOT (an absolute FILE counts by its last name) and for the lines on standard input. The
# place of the checkout does not count.
hash_inputs() {
  local root="$1" file name sum
  shift
  {
    cat
    for file in "$@"; do
      case "$file" in
        /*) name="${file##*/}" ;;
        *) name="$file" file="$root/$file" ;;
      esac
      sum="$(sha256sum <"$file")" || return 1
      printf '%s %s\n' "${sum%% *}" "$name"
    done
  } | sha256sum | cut -c1-16
}

# put_in_place STAGED FINAL: one rename, after which FINAL is complete.
put_in_place() {
  chmod 755 "$1"
  mv -T "$1" "$2"
}

# cargo_static REPOSITORY PACKAGE PROGRAM [ARGUMENT...]: builds a release of one workspace member as a static binary
# and prints its path; cargo gets the further arguments. Its target folder is in the cache, shared by the members, one for each checkout:
# cargo takes workspaces in different folders for the same one, and would mix them. --target keeps the
# flags away from build scripts and macros, which must stay dynamic. Local paths are mapped away, so
# that equal sources give equal bytes wherever they lie.
cargo_static() {
  local target_dir host=x86_64-unknown-linux-gnu home="${CARGO_HOME:-${HOME:-/root}/.cargo}"
  target_dir="$(cache_dir)/cargo/$(printf '%s' "$1" | sha256sum | cut -c1-16)"
  CARGO_TARGET_DIR="$target_dir" LIBSECCOMP_LINK_TYPE=static \
    LIBSECCOMP_LIB_PATH="${LIBSECCOMP_LIB_PATH:-/usr/lib/x86_64-linux-gnu}" \
    RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$1=/src --remap-path-prefix=$home=/cargo --remap-path-prefix=$target_dir=/target" \
    cargo build --manifest-path "$1/Cargo.toml" --release --locked --target "$host" -p "$2" --bin "$3" "${@:4}" >&2 || return 1
  printf '%s\n' "$target_dir/$host/release/$3"
}

# rust_sources REPOSITORY FOLDER...: the files that a workspace member is built of, one per line,
# relative to the repository and sorted.
rust_sources() {
  local repository="$1"
  shift
  (cd "$repository" && find Cargo.toml Cargo.lock "$@" -type f -not -path '*/target/*' -not -name '.*' | LC_ALL=C sort)
}

# assert_static PROGRAM: fails unless it is an ELF file without a dynamic loader.
assert_static() {
  if readelf --program-headers --wide "$1" | grep -q 'INTERP'; then
    fail "$1 is not static: a dependency links a shared library; see 'readelf -d $1'"
  fi
}

# rust_hash REPOSITORY FILE...: the short name of what a static Rust program is built of: the files, the compiler, and the way it is called.
rust_hash() { { rustc -vV; declare -f cargo_static; } | hash_inputs "$@"; }

# static_program REPOSITORY PACKAGE PROGRAM FOLDER [ARGUMENT...]: builds a program of one workspace member and puts it into FOLDER.
static_program() {
  local built
  built="$(cargo_static "$1" "$2" "$3" "${@:5}")" ||
    fail "$3 did not compile (cargo's messages are above). When they speak of Cargo.lock: run 'cargo metadata' once and commit Cargo.lock"
  assert_static "$built"
  cp "$built" "$4/$3"
}

# build_once NAME HASH MAKE [--path]: prints <cache>/NAME/HASH. Unless that is there (or --path is given) the function MAKE fills an
# empty folder, its argument, that is put there; of several builders one works and the others wait.
build_once() {
  local name="$1" hash="$2" make="$3" root
  shift 3
  root="$(cache_dir)/$name"
  case "$*" in
    "" | --path) ;;
    *) fail "unknown argument '$*': this script takes --path or nothing" ;;
  esac
  if [ $# -eq 0 ] && [ ! -d "$root/$hash" ]; then
    lock "$root/.lock" 1800
    [ -d "$root/$hash" ] || build_in_place "$root" "$hash" "$make"
  fi
  printf '%s\n' "$root/$hash"
}

# build_in_place ROOT HASH MAKE: under the lock nobody else works in ROOT, so what lies around is from a builder that was killed.
build_in_place() {
  rm -rf "$1"/.work.*
  work="$1/.work.$$"
  mkdir -p "$work"
  trap 'rm -rf "$work"' EXIT
  "$3" "$work"
  put_in_place "$work" "$1/$2"
}
