#!/usr/bin/env bash
# Sourced by the other scripts: where things are, how to talk, how many jobs fit.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034
deps=$root/.deps
cd "$root"

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
[ -t 2 ] || say() { printf '%s\n' "$*" >&2; }
fail() {
  printf '%s: error: %s\n' "script/$(basename "$0")" "$*" >&2
  exit 2
}

# Compilers at once: one a core, as far as memory reaches (a file that includes LibTorch takes about 1 GB).
build_jobs() {
  local cores memory_gb
  cores=$(nproc)
  memory_gb=$(awk '/MemAvailable/ { print int($2 / 1048576 / 1.5) }' /proc/meminfo)
  [ "$memory_gb" -ge 1 ] || memory_gb=1
  echo "${DFM_BUILD_JOBS:-$((cores < memory_gb ? cores : memory_gb))}"
}

# "4 min 05 s" since a value of $SECONDS.
took() {
  local seconds=$((SECONDS - $1))
  if [ $seconds -lt 60 ]; then echo "$seconds s"; else printf '%d min %02d s\n' $((seconds / 60)) $((seconds % 60)); fi
}

# The comment at the top of a script is its help.
usage() { sed -n '2,/^[^#]/p' "script/$(basename "$0")" | sed '/^# shellcheck/,$d; s/^# \?//'; }
