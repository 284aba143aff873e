"""What set-up says on a machine that lacks something: each machine here is a PATH with stand-ins for its programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "qwen_edge" / "native" / "preflight.sh"

# What the script itself calls; apart from these the PATH is empty.
TOOLS = ("sh", "uname", "id", "head", "grep")

PROGRAMS = {
    "python3.12": '[ "$1" = -c ] && case "$2" in *%d.%d.%d*) echo 3.12.4 ;; *-venv*) echo python3.12-venv ;; esac; exit 0',
    "python3": 'case "$2" in *%d.%d.%d*) echo 3.9.2 ;; *) exit 1 ;; esac',
    "c++": "exit 0",
    "cmake": "echo cmake version 3.25.1",
    "uname": "echo Linux",
    "id": "echo 1000",
}
WHOLE = ("python3.12", "c++", "cmake")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return a folder that is the whole PATH of a machine, with no manager, Python, compiler or CMake yet."""
    for tool in TOOLS:
        path = shutil.which(tool)
        assert path
        (tmp_path / tool).symlink_to(path)
    for tool in ("uname", "id"):
        _add(tmp_path, tool)
    return tmp_path


def _add(machine: Path, name: str, program: str | None = None) -> None:
    path = machine / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{program if program is not None else PROGRAMS[name]}\n")
    path.chmod(0o755)


def _run(machine: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    # Not the user's own CXX, TERMUX_VERSION and so on.
    assert os.access(SCRIPT, os.R_OK)
    return subprocess.run(
        [str(machine / "sh"), str(SCRIPT), *arguments],
        env={"PATH": str(machine), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_whole_machine_gives_its_python(machine: Path) -> None:
    for name in WHOLE:
        _add(machine, name)
    done = _run(machine)
    assert (done.returncode, done.stdout, done.stderr) == (0, "python3.12\n", "")


def test_everything_missing_is_said_at_once(machine: Path) -> None:
    _add(machine, "apt-get", "exit 0")
    done = _run(machine)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "  - Python 3.11 or newer, found none\n" in done.stderr
    assert "  - a C++ compiler (looked for c++, g++ and clang++)\n" in done.stderr
    assert "  - CMake\n" in done.stderr
    line = "  sudo apt-get update && sudo apt-get install -y python3-venv build-essential cmake\n"
    assert line in done.stderr


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt-get", "sudo apt-get update && sudo apt-get install -y build-essential cmake"),
        ("dnf", "sudo dnf install -y gcc-c++ cmake"),
        ("apk", "sudo apk add build-base cmake"),
        ("pacman", "sudo pacman -S --needed base-devel cmake"),
        ("zypper", "sudo zypper install -y gcc-c++ cmake"),
        ("unknown", "your system's package manager: gcc-c++ cmake"),
    ],
)
def test_the_command_is_the_systems_own(machine: Path, manager: str, command: str) -> None:
    _add(machine, "python3.12")
    _add(machine, manager, "exit 0")
    assert f"  {command}\n" in _run(machine).stderr


def test_root_needs_no_sudo(machine: Path) -> None:
    _add(machine, "python3.12")
    _add(machine, "c++")
    _add(machine, "dnf", "exit 0")
    _add(machine, "id", "echo 0")
    assert "  dnf install -y cmake\n" in _run(machine).stderr


def test_an_old_python_is_named_with_its_version(machine: Path) -> None:
    for name in ("python3", "c++", "cmake"):
        _add(machine, name)
    _add(machine, "apt-get", "exit 0")
    _add(machine, "apt-cache", 'if [ "$2" = python3.12-venv ]; then echo "Package: $2"; fi')
    done = _run(machine)
    assert "Python 3.11 or newer, found python3 3.9.2" in done.stderr
    assert "install -y python3.12-venv\n" in done.stderr, "the newest that the release has"


def test_a_python_without_venv_gets_the_package_of_its_version(machine: Path) -> None:
    for name in ("c++", "cmake"):
        _add(machine, name)
    _add(machine, "python3.12", f'case "$2" in *ensurepip*) exit 1 ;; esac; {PROGRAMS["python3.12"]}')
    _add(machine, "apt-get", "exit 0")
    done = _run(machine)
    assert "  - venv for python3.12" in done.stderr
    assert "install -y python3.12-venv\n" in done.stderr


def test_a_shim_for_a_python_that_is_not_there_is_passed_over(machine: Path) -> None:
    for name in WHOLE:
        _add(machine, name)
    _add(machine, "python3.13", "echo 'command not found' >&2; exit 127")
    assert _run(machine).stdout == "python3.12\n"


def test_the_python_asked_for_is_taken_or_refused(machine: Path) -> None:
    for name in WHOLE:
        _add(machine, name)
    _add(machine, "python3")
    assert _run(machine, "python3.12").stdout == "python3.12\n"
    assert "as PYTHON=python3, found python3 3.9.2" in _run(machine, "python3").stderr


def test_a_compiler_that_does_not_compile_is_missing(machine: Path) -> None:
    for name in WHOLE:
        _add(machine, name)
    _add(machine, "c++", "echo 'fatal error: cstdint: no such file'; exit 1")
    assert "(c++ says: fatal error: cstdint: no such file)" in _run(machine).stderr


def test_the_compiler_asked_for_is_the_one_looked_for(machine: Path) -> None:
    for name in WHOLE:
        _add(machine, name)
    assert "a C++ compiler (looked for icpx)" in _run(machine, CXX="icpx").stderr
    _add(machine, "ccache", "exit 0")
    assert _run(machine, CXX="ccache c++").returncode == 0


def test_macos_gets_its_compiler_from_xcode(machine: Path) -> None:
    _add(machine, "python3.12")
    _add(machine, "uname", "echo Darwin")
    _add(machine, "brew", "exit 0")
    done = _run(machine)
    assert "Install with:\n  xcode-select --install\n  brew install cmake\n" in done.stderr


def test_tools_alone_are_asked_for_by_a_python_that_is_there(machine: Path) -> None:
    _add(machine, "dnf", "exit 0")
    done = _run(machine, "--tools")
    assert done.returncode == 1
    assert "Python" not in done.stderr
    assert "  sudo dnf install -y gcc-c++ cmake\n" in done.stderr
    assert "Then run qwen-edge setup again" in done.stderr
    assert 'To go without a compiler: pip install "qwen-edge[onnx]"' in done.stderr
    _add(machine, "c++")
    assert "CMake comes without root too: pip install cmake" in _run(machine, "--tools").stderr
    _add(machine, "cmake")
    done = _run(machine, "--tools")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_termux_gets_its_own_packages_and_ninja_beside_them(machine: Path) -> None:
    _add(machine, "apt-get", "exit 0")
    done = _run(machine, "--tools", TERMUX_VERSION="0.118.3")
    assert "  - ninja\n" in done.stderr
    assert "  pkg install clang cmake ninja\n" in done.stderr
    assert "onnx" not in done.stderr, "there is no ONNX Runtime for Android in a wheel"
    for name in ("c++", "cmake"):
        _add(machine, name)
    _add(machine, "ninja", "exit 0")
    done = _run(machine, "--tools", TERMUX_VERSION="0.118.3")
    assert (done.returncode, done.stderr) == (0, "")
    (machine / "cmake").unlink()
    assert "pip install cmake" not in _run(machine, "--tools", TERMUX_VERSION="0.118.3").stderr
