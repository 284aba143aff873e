"""The build around the compiler: cache, lock, log, interruption. A small script stands in for pip."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from qwen_edge.errors import NativeError
from qwen_edge.native import build
from qwen_edge.native.build_plan import BuildPlan, Compiler, Cpu, plan_build

ROOT = Path(__file__).parents[3]
WHEEL = "llama_cpp_python-0.3.36-py3-none-any.whl"

# In place of `pip wheel ... --wheel-dir FOLDER REQUIREMENT`: says where it was called, writes a file, ends as told.
FAKE_PIP = f"""\
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--wheel-dir") + 1])
with open(os.environ["CALLS"], "a") as calls:
    print(os.getpid(), file=calls)
print("  [1/2] cc -c one.c", flush=True)
print("CMAKE_ARGS=" + os.environ["CMAKE_ARGS"], "CXXFLAGS=" + os.environ.get("CXXFLAGS", ""), flush=True)
time.sleep(float(os.environ.get("PIP_SECONDS", "0")))
if os.environ.get("PIP_FAILS"):
    sys.exit(os.environ["PIP_FAILS"])
(folder / "{WHEEL}").write_bytes(b"wheel")
"""


@pytest.fixture
def plan() -> BuildPlan:
    cpu = Cpu(architecture="x86_64", name="a CPU", features=("amx_tile",))
    compiler = Compiler(command="c++", family="gcc", version=(12, 2), banner="c++ (Debian) 12.2.0")
    return plan_build(cpu, compiler, {}, version="0.3.36", target="linux")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in in pip's place; return the file with one line a call."""
    script = tmp_path / "pip.py"
    script.write_text(FAKE_PIP)
    monkeypatch.setattr(build, "_pip", lambda: [sys.executable, str(script)])
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def test_a_build_is_made_once(plan: BuildPlan, calls: Path, tmp_path: Path) -> None:
    folder = tmp_path / "native"
    wheel = build.ensure_wheel(plan, folder)
    assert wheel == folder / plan.key / WHEEL
    assert build.ensure_wheel(plan, folder) == wheel
    assert len(calls.read_text().splitlines()) == 1
    record = json.loads((wheel.parent / "build.json").read_text())
    assert record["key"] == plan.key
    assert record["compiler"] == "c++ (Debian) 12.2.0"
    assert record["flags"].endswith("CXXFLAGS=-fno-tree-dse -fno-dse")
    assert sorted(path.name for path in folder.iterdir()) == sorted([plan.key, f"{plan.key}.log", "lock"])


def test_the_compiler_gets_the_flags(plan: BuildPlan, calls: Path, tmp_path: Path) -> None:
    build.ensure_wheel(plan, tmp_path / "native folder")
    log = (tmp_path / "native folder" / f"{plan.key}.log").read_text()
    assert "-DGGML_NATIVE=ON" in log
    assert "CXXFLAGS=-fno-tree-dse -fno-dse" in log
    assert "'-DCMAKE_PROJECT_llama_cpp_INCLUDE=" in log, "a folder with a space in its name is quoted"


def test_a_damaged_wheel_is_built_again(plan: BuildPlan, calls: Path, tmp_path: Path) -> None:
    wheel = build.ensure_wheel(plan, tmp_path)
    wheel.write_bytes(b"")
    assert build.ensure_wheel(plan, tmp_path).read_bytes() == b"wheel"
    assert len(calls.read_text().splitlines()) == 2


def test_a_failed_build_shows_its_log_and_leaves_no_entry(
    plan: BuildPlan,
    calls: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PIP_FAILS", "c++: fatal error: Killed signal terminated program cc1plus")
    folder = tmp_path / "native"
    with pytest.raises(NativeError, match="CMAKE_BUILD_PARALLEL_LEVEL=1 make setup") as failure:
        build.ensure_wheel(plan, folder)
    assert str(folder / f"{plan.key}.log") in str(failure.value)
    assert "| c++: fatal error: Killed" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == [f"{plan.key}.log", "lock"]


def test_a_full_disk_is_said_before_the_build(
    plan: BuildPlan, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_NEEDED_DISK_BYTES", 1 << 60)
    with pytest.raises(NativeError, match=r"the build needs .* MB are free"):
        build.ensure_wheel(plan, tmp_path)
    assert not calls.exists()


def _script(tmp_path: Path) -> list[str]:
    """Return a command that runs the build with the stand-in, as `python -m` runs the real one."""
    program = f"""\
        import signal, sys
        from qwen_edge.native import build
        build._pip = lambda: [sys.executable, {str(tmp_path / "pip.py")!r}]
        build.install_wheel = lambda wheel, plan: None
        signal.signal(signal.SIGTERM, build._on_sigterm)
        sys.exit(build.main(["--wheel-only"]))
    """
    return [sys.executable, "-c", textwrap.dedent(program)]


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_leaves_nothing(
    calls: Path, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    env = {**os.environ, "PIP_SECONDS": "60", "QWEN_EDGE_CACHE": str(tmp_path)}
    with subprocess.Popen(_script(tmp_path), env=env, cwd=ROOT, stderr=subprocess.PIPE) as process:
        _wait_for(calls)
        process.send_signal(number)
        process.communicate(timeout=20)
        assert process.returncode == exit_code
    assert not _is_running(int(calls.read_text())), "pip and what it started end too"
    assert not [path for path in (tmp_path / "native").iterdir() if path.is_dir()]


def test_a_killed_build_is_cleared_away_by_the_next(plan: BuildPlan, calls: Path, tmp_path: Path) -> None:
    left = tmp_path / "building-0123456789abcdef"
    left.mkdir(parents=True)
    build.ensure_wheel(plan, tmp_path)
    assert not left.exists()


def test_the_second_of_two_builds_waits_and_finds_the_wheel(calls: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PIP_SECONDS": "1", "QWEN_EDGE_CACHE": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(_script(tmp_path), env=env, cwd=ROOT, text=True, **pipes) as first:
        _wait_for(calls)
        second = subprocess.run(
            _script(tmp_path), env=env, cwd=ROOT, text=True, capture_output=True, timeout=20, check=True
        )
        wheel, _ = first.communicate(timeout=20)
    assert second.stdout == wheel
    assert "another build is running: waiting" in second.stderr
    assert len(calls.read_text().splitlines()) == 1


def test_progress_is_the_last_counter_of_ninja_or_make() -> None:
    log = "  [1/83] /usr/bin/c++ -c a.cpp\n  note: [9/9]\n  [27/83] /usr/bin/c++ -c b.cpp\n"
    assert build.progress_in(log) == ": 27 of 83 steps"
    assert build.progress_in("  [  3%] Building C object\n  [ 14%] Building CXX object\n") == ": 14%"
    assert build.progress_in("Preparing metadata") == ""


@pytest.mark.parametrize(
    ("log", "remedy"),
    [
        ("c++: error: No space left on device", "The disk is full"),
        ("ERROR: No matching distribution found for llama-cpp-python==9", "The package index did not answer"),
        ("c++: error: unrecognized command-line option '-fno'", "Look at CMAKE_ARGS, CFLAGS"),
        ("error: unknown type name 'foo'", "another compiler"),
    ],
)
def test_a_failure_says_what_to_do(log: str, remedy: str) -> None:
    assert remedy in build.remedy_for(log)


def test_the_plan_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--print-plan"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {
        "key",
        "version",
        "flags",
        "compiler",
        "reasons",
        "jobs",
        "cached_wheel",
        "installed",
    } <= printed.keys()


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"QWEN_EDGE_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c/native"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/qwen-edge/native"),
        ({}, f"{Path.home()}/.cache/qwen-edge/native"),
    ],
)
def test_the_cache_is_where_the_user_wants_it(env: dict[str, str], folder: str) -> None:
    assert str(build.cache_folder(env)) == folder
