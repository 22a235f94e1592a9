#!/usr/bin/env bash
# Compiles the kernels and their checks, and the emulator's switch of stacks, for 64-bit Arm and, where qemu-user is installed, runs them.
# Debian packages: g++-aarch64-linux-gnu qemu-user-static
set -euo pipefail
cd "$(dirname "$0")/../native"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
aarch64-linux-gnu-g++ -std=c++20 -O1 -ffp-contract=off -Wall -Wextra -I. -static \
  base/thread_pool.cc kernels/*.cc engine/sampler.cc train/*.cc checks/*.cc \
  checks/cuda/emulator_checks.cc cuda/emulator_{device,fiber,grid}.cc -o "$out/pi_checks" -lpthread
if command -v qemu-aarch64-static >/dev/null; then
  qemu-aarch64-static "$out/pi_checks"
else
  echo "ok compiled; qemu-aarch64-static is not installed, so nothing ran"
fi
