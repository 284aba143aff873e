#!/bin/sh
# Looks for what set-up needs before anything is downloaded: a Python that can make a venv, a C++ compiler, CMake.
# Prints the Python to use on stdout; or names everything that is missing, with the command that brings it, and exits 1.
# In sh, because it has to run where there is no Python yet.
#
# Usage: preflight.sh [PYTHON]      for a checkout: make setup
#        preflight.sh --tools       compiler and CMake only, for a Python that is there: qwen-edge setup

asked=$1
missing=
packages=
xcode=

manager=
for candidate in apt-get dnf apk pacman zypper brew; do
    if command -v $candidate >/dev/null 2>&1; then
        manager=$candidate
        break
    fi
done
# Termux has apt-get too, and package names of its own.
if [ -n "$TERMUX_VERSION" ]; then manager=pkg; fi

# need WHAT PACKAGE: note that something is missing and which package has it.
need() {
    missing="$missing
  - $1"
    packages="$packages${2:+ $2}"
}

# Debian has one package for each Python, and which of them exist depends on the release.
apt_python() {
    for version in 3.13 3.12 3.11; do
        if apt-cache show "python$version-venv" 2>/dev/null | grep -q '^Package:'; then
            echo "python$version-venv"
            return
        fi
    done
    echo python3-venv
}

python_package() {
    case $manager in
        apt-get) apt_python ;;
        dnf) echo python3.12 ;;
        zypper) echo python312 ;;
        apk) echo python3 ;;
        brew) echo python@3.13 ;;
        *) echo python ;;
    esac
}

compiler_package() {
    case $manager in
        apt-get) echo build-essential ;;
        apk) echo build-base ;;
        pacman) echo base-devel ;;
        pkg) echo clang ;;
        *) echo gcc-c++ ;;
    esac
}

# --- Python

find_python() {
    python=
    without_venv=
    found=
    for candidate in ${asked:-python3.13 python3.12 python3.11 python3}; do
        # A name on the PATH may be a shim for a version that is not there: only what runs counts.
        version=$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            found="$found, found $candidate $version"
        elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            without_venv=${without_venv:-$candidate}
        else
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        if [ -n "$without_venv" ]; then
            package=$(python_package)
            if [ "$manager" = apt-get ]; then
                package=$("$without_venv" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
            fi
            need "venv for $without_venv (its modules venv or ensurepip are not installed)" "$package"
        else
            need "Python 3.11 or newer${asked:+ as PYTHON=$asked}${found:-, found none}" "$(python_package)"
        fi
    fi
}

if [ "$asked" != --tools ]; then find_python; fi

# --- C++ compiler

compiler=
looked=${CXX:-c++, g++ and clang++}
if [ -n "$CXX" ]; then
    # CXX may hold arguments; the first word is the program.
    if command -v "${CXX%% *}" >/dev/null 2>&1; then compiler=$CXX; fi
else
    for candidate in c++ g++ clang++; do
        if command -v $candidate >/dev/null 2>&1; then
            compiler=$candidate
            break
        fi
    done
fi
problem=
if [ -z "$compiler" ]; then
    problem="a C++ compiler (looked for $looked)"
# A compiler without its headers, and macOS's stand-in for one that is not installed yet, are found by using them.
elif ! complaint=$(echo '#include <cstdint>
int main() { if (int zero = 0; zero) return 1; }' | $compiler -std=c++17 -fsyntax-only -x c++ - 2>&1); then
    problem="a C++17 compiler that works ($compiler says: $(echo "$complaint" | head -n 1))"
fi
if [ -n "$problem" ]; then
    if [ "$(uname -s)" = Darwin ]; then
        xcode=1
        need "$problem"
    else
        need "$problem" "$(compiler_package)"
    fi
fi

# --- CMake

if ! cmake --version >/dev/null 2>&1; then need "CMake" cmake; fi

# Elsewhere pip brings ninja, compiled already. For Android there is none, and pip would compile that too.
if [ "$manager" = pkg ] && ! command -v ninja >/dev/null 2>&1; then need "ninja" ninja; fi

if [ -z "$missing" ]; then
    if [ -n "$python" ]; then echo "$python"; fi
    exit 0
fi

sudo=
if [ "$(id -u)" != 0 ]; then sudo="sudo "; fi
{
    echo "qwen-edge cannot be set up yet. Missing:$missing"
    echo "Install with:"
    if [ -n "$xcode" ]; then echo "  xcode-select --install"; fi
    if [ -n "$packages" ]; then
        case $manager in
            apt-get) echo "  ${sudo}apt-get update && ${sudo}apt-get install -y$packages" ;;
            dnf) echo "  ${sudo}dnf install -y$packages" ;;
            apk) echo "  ${sudo}apk add$packages" ;;
            pacman) echo "  ${sudo}pacman -S --needed$packages" ;;
            zypper) echo "  ${sudo}zypper install -y$packages" ;;
            brew) echo "  brew install$packages" ;;
            pkg) echo "  pkg install$packages" ;;
            *) echo "  your system's package manager:$packages" ;;
        esac
    fi
    if [ "$asked" = --tools ]; then
        echo "Then run qwen-edge setup again. Another compiler: CXX=clang++ qwen-edge setup"
        # Neither CMake nor ONNX Runtime has a wheel for Android.
        if [ "$manager" = pkg ]; then
            :
        elif [ -z "$problem" ]; then
            echo "CMake comes without root too: pip install cmake"
        else
            echo 'To go without a compiler: pip install "qwen-edge[onnx]"'
        fi
    else
        echo "Then run make again. Another Python or compiler: make setup PYTHON=/path/to/python3 CXX=clang++"
    fi
} >&2
exit 1
