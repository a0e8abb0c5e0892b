#!/bin/sh
# The GPU suites and the GPU benchmark on a machine that has a GPU and nothing else: no Rust, no network.
#
#   hwtests/gpu.sh pack            on a machine with Rust and a package index: builds and packs into target/gpu-kit
#   hwtests/gpu.sh run [OUT_DIR [smoke]]
#                                  in the same checkout on the machine with the GPU: runs the kit; records go to OUT_DIR;
#                                  with `smoke` a small benchmark that shows only that everything runs
#
# `run` takes under five minutes and ends with 1 if a test failed. It needs libcuda, a glibc as new as the kit's (it says
# which), 5 GiB on the disk, and python3 for the KvikIO side only.
set -eu
cd "$(dirname "$0")/.."
kit=target/gpu-kit
wheels="kvikio-cu12==26.10.0 libkvikio-cu12==26.10.0 rapids-logger==0.3.0 cuda-pathfinder==1.9.1 nvidia-cufile-cu12==1.14.1.1"

pack() {
    cargo build --release --quiet -p hwtests -p straightway-benches
    built="${CARGO_TARGET_DIR:-target}/release"
    rm -rf "$kit"
    mkdir -p "$kit/wheels"
    for program in hwtests straightway-benches; do
        # Without debug information: the kit is carried, 64 MiB at most on some machines.
        strip -o "$kit/$program" "$built/$program"
    done
    objdump -T "$kit"/hwtests "$kit"/straightway-benches | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1 >"$kit/needs"
    git rev-parse HEAD >"$kit/commit"
    # Any Python of 3.11 or later can use these; no numpy, no cupy.
    platforms=""
    for glibc in 2_28 2_27 2_24 2_17; do platforms="$platforms --platform manylinux_${glibc}_$(uname -m)"; done
    # shellcheck disable=SC2086
    python3 -m pip download --quiet --no-deps --only-binary :all: --python-version 3.11 $platforms \
        --dest "$kit/wheels" $wheels ||
        echo "no wheels of KvikIO: its sides will be absent" >&2
    du -sh "$kit"
    echo "carry $kit; it needs $(cat "$kit/needs")"
}

run() {
    out="${1:-target/gpu-out}"
    size="${2:-real}"
    mkdir -p "$out"
    if ! "$kit/hwtests" list >/dev/null; then
        echo "the kit does not start here: it needs $(cat "$kit/needs"), this is $(ldd --version 2>&1 | head -1)" >&2
        exit 2
    fi
    peers
    status=0
    timeout 120 "$kit/hwtests" run --record "$out" || status=$?
    timeout 200 "$kit/straightway-benches" gpu --size "$size" --rounds 3 --dir "$kit/data" --venv "$kit/venv" --peers benches/peers \
        --out "$out/bench-gpu" || status=$?
    cat "$out/bench-gpu.md" || true
    rm -rf "$kit/data"
    echo "tests and benchmark of the kit of commit $(cat "$kit/commit"), worst status $status; records in $out"
    [ "$status" -eq 0 ] || exit 1
}

# An interpreter that has KvikIO, where the harness expects one: the wheels unpacked beside it, nothing installed.
peers() {
    [ -n "$(ls "$kit/wheels")" ] && python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "no KvikIO: no wheels in the kit, or no Python of 3.11 or later" >&2
        return 0
    }
    mkdir -p "$kit/venv/bin" "$kit/venv/packages"
    for wheel in "$kit"/wheels/*.whl; do
        python3 -m zipfile -e "$wheel" "$kit/venv/packages"
    done
    # KvikIO looks for cuFile in installed packages only, then where the loader looks.
    {
        echo '#!/bin/sh'
        echo "export PYTHONPATH='$PWD/$kit/venv/packages'"
        echo "export LD_LIBRARY_PATH=\"$PWD/$kit/venv/packages/nvidia/cufile/lib:\${LD_LIBRARY_PATH:-}\""
        echo 'exec python3 "$@"'
    } >"$kit/venv/bin/python"
    chmod +x "$kit/venv/bin/python"
}

case "${1:-}" in
    pack) pack ;;
    run) shift && run "$@" ;;
    *) sed -n '2,11p' "$0" && exit 2 ;;
esac
