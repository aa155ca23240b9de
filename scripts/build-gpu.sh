#!/usr/bin/env bash
# Makes a `firesight` for x86-64 Linux that has every backend: CUDA through NVRTC, wgpu and the CPU.
#
#   scripts/build-gpu.sh [FILE]     # without FILE, it is target/gpu/firesight
#
# It needs cargo, a C compiler, binutils, and of networks the crate registry alone: cubecl's LLVM compiler, whose build
# script downloads LLVM from elsewhere, is replaced by scripts/nvrtc/cubecl-llvm. What it makes starts on any machine
# with glibc 2.36; for CUDA that machine needs NVIDIA's driver, NVRTC and the CUDA headers, all of 12.8 or newer.
set -euo pipefail

most_bytes=100000000
most_glibc=2.36
# The loader is part of glibc; some linkers name it.
libraries='^(libc|libm|libdl|libpthread|libgcc_s|ld-linux-x86-64)\.so\.[0-9]+$'

fail() {
    echo "build-gpu: $*" >&2
    exit 1
}

[[ $(uname -sm) == "Linux x86_64" ]] || fail "this builds for x86-64 Linux, on x86-64 Linux"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
export CARGO_TARGET_DIR
# A profile's directory has its name, so this is also where cargo puts it.
built=$CARGO_TARGET_DIR/gpu/firesight
file=$(realpath -m "${1:-$built}")
cd "$root"

# cudarc takes this from the toolkit, or without one takes the newest version that it knows; the result should not
# depend on the machine. It looks for NVRTC as libnvrtc.so, then as libnvrtc.so.13 with a value of 13, then as
# libnvrtc.so.12: with 12 it would not find NVRTC 13. It looks up each function of the driver at its first call, so what
# a driver lacks matters only where it is called. The newest that cubecl always calls with 13.0 is
# cuEventElapsedTime_v2, to time kernels; drivers have it since CUDA 12.8.
export CUDARC_CUDA_VERSION=${CUDARC_CUDA_VERSION:-13000}

# Relocations packed: 6 MB less. Older loaders than that of glibc 2.36 do not read them, and say so.
export FIRESIGHT_LINK_ARGS=-Wl,-z,pack-relative-relocs

# The patch is not for everyone's Cargo.lock, and cargo writes it there: it is put back whatever happens.
lock=$(mktemp)
cp -p Cargo.lock "$lock"
trap 'cp -p "$lock" Cargo.lock; rm -f "$lock"' EXIT

cargo build --profile gpu --workspace --bins --features cuda,nvrtc,wgpu \
    --config "patch.crates-io.cubecl-llvm.path='$root/scripts/nvrtc/cubecl-llvm'"

bytes=$(stat -c %s "$built")
if command -v xz >/dev/null; then
    packed="xz -9"
else
    packed="zstd -19"
fi
headers=$(objdump -p "$built")
needed=$(awk '$1 == "NEEDED" { print $2 }' <<<"$headers")
# The packed relocations are asked for by a name of their own.
glibc=$(sed 's/GLIBC_ABI_DT_RELR/GLIBC_2.36/' <<<"$headers" | grep -oE '\bGLIBC_[0-9.]+' | sort -uV | tail -n 1)
echo "size: $bytes bytes, $($packed -c "$built" | wc -c) after $packed"
echo "newest glibc symbols: $glibc"
echo "links:" $needed

((bytes <= most_bytes)) || fail "more than $most_bytes bytes"
[[ $(printf 'GLIBC_%s\n' "$most_glibc" "${glibc#GLIBC_}" | sort -V | tail -n 1) == "GLIBC_$most_glibc" ]] ||
    fail "it needs $glibc: build it where glibc is $most_glibc or older"
if foreign=$(grep -vE "$libraries" <<<"$needed"); then
    fail "it links more than glibc:" $foreign
fi

# Renamed into place, so that no one starts half of it.
if [[ $file != "$built" ]]; then
    mkdir -p "$(dirname "$file")"
    cp "$built" "$file.part"
    mv "$file.part" "$file"
fi
echo "$file"
