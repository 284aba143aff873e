#!/bin/sh
# Sets qwen-edge up in Termux on an Android phone: packages, a Python environment, llama.cpp compiled for this processor.
# docs/android.md tells what each step is for, and which of them were tried where.
#
# Usage: sh examples/termux/install.sh [--dry-run] [--storage] [--no-build]
#   --dry-run   print the commands and change nothing
#   --storage   ask for access to shared storage too, for model files that lie there
#   --no-build  leave the compilation out, where the library comes from another phone (QWEN_EDGE_NATIVE)
#
# It can be run again at any time: what is there already is kept, and an interrupted compilation goes on.

set -eu

needed_disk_mb=3000
# The largest file of llama.cpp takes 1 GB to compile.
needed_memory_mb=1500
packages="python python-pip python-ensurepip-wheels python-numpy python-psutil clang cmake ninja libandroid-spawn git"

root=$(cd "$(dirname "$0")/../.." && pwd)
venv=$root/.venv
dry_run=
storage=
build=1
for option in "$@"; do
    case $option in
        --dry-run) dry_run=1 ;;
        --storage) storage=1 ;;
        --no-build) build= ;;
        *)
            echo "unknown option $option; known are --dry-run, --storage and --no-build" >&2
            exit 2
            ;;
    esac
done

say() { echo "== $*" >&2; }

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

# run COMMAND...: do it, or print it.
run() {
    if [ -n "$dry_run" ]; then
        echo "$*"
    else
        "$@"
    fi
}

# --- Is this a machine it can work on?

if [ -z "${TERMUX_VERSION:-}" ]; then
    fail "this is not Termux (TERMUX_VERSION is not set). Elsewhere: make setup"
fi
case $(uname -m) in
    aarch64 | arm64 | x86_64) ;;
    *) fail "a 64-bit system is needed, this one is $(uname -m): models would not fit into its address space" ;;
esac

free_mb=$(($(df -Pk "$root" | awk 'NR == 2 { print $4 }') / 1024))
if [ "$free_mb" -lt "$needed_disk_mb" ]; then
    fail "$needed_disk_mb MB of storage are needed, $free_mb MB are free. Packages and the build take 2.5 GB, then comes a model"
fi
memory_mb=$(($(awk '/^MemTotal:/ { print $2 }' /proc/meminfo) / 1024))
if [ -n "$build" ] && [ "$memory_mb" -lt "$needed_memory_mb" ]; then
    fail "compiling needs a phone with $needed_memory_mb MB of memory, this one has $memory_mb MB: --no-build, with a library from another phone"
fi
say "$free_mb MB of storage are free, $memory_mb MB of memory are there"

# --- Keep the processor awake: Android slows programs down when the screen is off, and may end them.

if command -v termux-wake-lock >/dev/null 2>&1; then
    if [ -z "$dry_run" ]; then trap 'termux-wake-unlock' EXIT; fi
    # An exit by a signal runs the trap above too.
    trap 'exit 130' INT
    trap 'exit 143' TERM
    run termux-wake-lock
else
    say "no termux-wake-lock: keep the screen on until this is done"
fi

# --- Packages

say "packages: $packages"
run pkg upgrade -y
# shellcheck disable=SC2086 - a list of words
run pkg install -y $packages

if [ -n "$storage" ]; then
    say "Android asks for the permission now; shared files are in ~/storage afterwards"
    run termux-setup-storage
fi

# --- Python: numpy and psutil are Termux's own packages, so the environment has to see them.

if [ -x "$venv/bin/pip" ] || [ -x "$venv/bin/pip3" ]; then
    say "the environment $venv is there"
else
    run python -m venv --clear --system-site-packages "$venv"
fi
run "$venv/bin/python" -m pip install --disable-pip-version-check -c "$root/examples/termux/constraints.txt" "$root"

# --- llama.cpp, for this processor; flags of your own: CMAKE_ARGS=... sh examples/termux/install.sh

if [ -n "$build" ]; then
    say "compiling llama.cpp: ten minutes to an hour on a phone; after an interruption run this again"
    run "$venv/bin/qwen-edge" setup
    run "$venv/bin/qwen-edge" doctor
fi

say "done. Next: . $venv/bin/activate && qwen-edge pull qwen3-0.6b && qwen-edge chat qwen3-0.6b"
