#!/usr/bin/env bash
# Runs the tests of the models and ten steps of the main job on wgpu without a GPU: on Mesa's lavapipe, which is a
# processor that speaks Vulkan. Slow, and no measure of speed; see docs/backends.md.
#
#   tests/backends.sh                  # installs lavapipe with apt-get where it is missing
#   FIRESIGHT_DEVICE=wgpu:1 tests/backends.sh    # on another device that wgpu reaches
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${FIRESIGHT_DEVICE:-}" ]; then
    driver() { find /usr/share/vulkan/icd.d /etc/vulkan/icd.d -name 'lvp_icd*.json' 2>/dev/null | head -n 1; }
    if [ -z "$(driver)" ]; then
        install="apt-get install --yes --no-install-recommends mesa-vulkan-drivers libvulkan1"
        echo "installing lavapipe: $install" >&2
        as_root=""
        [ "$(id -u)" -eq 0 ] || as_root="sudo"
        $as_root apt-get update
        $as_root $install
    fi
    # Only this driver, whatever else is installed.
    VK_DRIVER_FILES="$(driver)"
    export VK_DRIVER_FILES FIRESIGHT_DEVICE=wgpu
fi
# Unset it only warns.
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}"

# Without choosing among kernels by timing them: on a processor that tells nothing, and compiling all of them takes an
# hour. One test after another: each has all cores.
cargo test --workspace --profile backends --features wgpu-untuned \
    --test oracle_models --test oracle_kawhi --test signals --test backends \
    -- --include-ignored --nocapture --test-threads 1
