"""The build around the compiler: cache, lock, interruption, resuming. A small script stands in for pip."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from qwen_edge.errors import NativeError
from qwen_edge.native import build, build_needs, builds, own_kernels
from qwen_edge.native.build_plan import BuildPlan, plan_build
from qwen_edge.native.toolchain import Compiler, Cpu

ROOT = Path(__file__).parents[3]
WHEEL = "llama_cpp_python-0.3.36-py3-none-any.whl"

# In place of `pip download` and `pip wheel`: notes the call, leaves an object as a compiler does, ends as told.
FAKE_PIP = f"""\
import os, pathlib, shutil, sys, time
with open(os.environ["CALLS"], "a") as calls:
    print(sys.argv[1], os.getpid(), file=calls)
here = pathlib.Path(__file__).parent
def option(name):
    return pathlib.Path(sys.argv[sys.argv.index(name) + 1])
if sys.argv[1] == "download":
    if os.environ.get("DOWNLOAD_FAILS"):
        sys.exit(os.environ["DOWNLOAD_FAILS"])
    shutil.copy(here / "llama_cpp_python-0.3.36.tar.gz", option("--dest"))
    sys.exit(0)
source = pathlib.Path(sys.argv[-1])
objects = pathlib.Path(next(a for a in sys.argv if "build-dir=" in a).partition("build-dir=")[2])
assert (source / "CMakeLists.txt").is_file()
objects.mkdir(exist_ok=True)
print("  [1/2] cc -c one.c", flush=True)
facts = pathlib.Path(os.environ["CMAKE_ARGS"].partition("QWEN_EDGE_BUILD_FACTS=")[2].partition("'")[0])
facts.write_text(facts.read_text().replace('"key"', '"kernels": "ggml_a ggml_b", "key"', 1))
print("CMAKE_ARGS=" + os.environ["CMAKE_ARGS"], "CXXFLAGS=" + os.environ.get("CXXFLAGS", ""), flush=True)
if (objects / "damaged").exists():
    sys.exit("ld: one.o: file format not recognized")
(objects / os.environ.get("GENERATED", "build.ninja")).touch()
(objects / "one.o").touch()
with open(os.environ["CALLS"], "a") as calls:
    print("compiling", os.getpid(), file=calls)
time.sleep(float(os.environ.get("PIP_SECONDS", "0")))
gives_up = time.monotonic() + 60
while (gate := os.environ.get("PIP_WAITS_FOR")) and not os.path.exists(gate) and time.monotonic() < gives_up:
    time.sleep(0.02)
if os.environ.get("PIP_FAILS"):
    sys.exit(os.environ["PIP_FAILS"])
shutil.copy(here / "{WHEEL}", option("--wheel-dir"))
"""


@pytest.fixture
def plan() -> BuildPlan:
    cpu = Cpu(architecture="x86_64", name="a CPU", features=("amx_tile",))
    compiler = Compiler(command="c++", family="gcc", version=(12, 2), banner="c++ (Debian) 12.2.0")
    return plan_build(cpu, compiler, {}, version="0.3.36", target="linux")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the builds, not there yet; its name has a space."""
    monkeypatch.setenv("QWEN_EDGE_NATIVE", str(tmp_path / "native folder"))
    return tmp_path / "native folder"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in in pip's place; return the file with its calls."""
    (tmp_path / "pip.py").write_text(FAKE_PIP)
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as wheel:
        wheel.writestr("llama_cpp/llama_cpp.py", "# bindings\n")
        wheel.writestr("llama_cpp/lib/libllama.so", b"library")
        wheel.writestr("llama_cpp_python-0.3.36.dist-info/METADATA", "Name: llama-cpp-python\n")
    with tarfile.open(tmp_path / "llama_cpp_python-0.3.36.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("llama_cpp_python-0.3.36/CMakeLists.txt"), io.BytesIO())
    monkeypatch.setattr(build_needs, "pip_command", lambda work: [sys.executable, str(tmp_path / "pip.py")])
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


@pytest.fixture
def said() -> list[str]:
    return []


Run = Callable[..., builds.Build]


@pytest.fixture
def run(plan: BuildPlan, folder: Path, calls: Path, said: list[str]) -> Run:
    """Return a function that ensures the build; it may be given force and jobs."""
    return lambda **options: build.ensure_build(plan, say=said.append, **options)


def _commands(calls: Path) -> list[str]:
    return [line.split()[0] for line in calls.read_text().splitlines()] if calls.exists() else []


def test_a_build_is_made_once(run: Run, plan: BuildPlan, folder: Path, calls: Path) -> None:
    made = run()
    assert made.package == folder / plan.key / "llama_cpp"
    assert (made.library / "libllama.so").read_bytes() == b"library"
    assert (made.origin, made.key, made.cpu_features) == ("setup", plan.key, ("amx_tile",))
    assert run() == made
    assert _commands(calls) == ["download", "wheel", "compiling"]
    record = json.loads((folder / plan.key / "build.json").read_text())
    assert record["compiler"] == "c++ (Debian) 12.2.0"
    assert made.kernels == ("ggml_a", "ggml_b"), "as CMake told"
    assert record["flags"].endswith("CXXFLAGS=-fno-tree-dse -fno-dse")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [plan.key, f"{plan.key}.log", f"{plan.key}.lock"]
    )
    assert sorted(path.name for path in (folder / plan.key).iterdir()) == ["build.json", "llama_cpp"]


def test_the_compiler_gets_the_flags(run: Run, plan: BuildPlan, folder: Path) -> None:
    run()
    log = (folder / f"{plan.key}.log").read_text()
    assert "-DGGML_NATIVE=ON" in log
    assert "CXXFLAGS=-fno-tree-dse -fno-dse" in log
    assert "'-DCMAKE_PROJECT_llama_cpp_INCLUDE=" in log, "a folder with a space in its name is quoted"
    assert f"-DQWEN_EDGE_KERNELS_FILE={own_kernels.CMAKE_FILE}" in log
    assert own_kernels.CMAKE_FILE.is_file()


def test_a_build_that_is_asked_for_again_becomes_the_newest(run: Run, plan: BuildPlan, folder: Path) -> None:
    run()
    record = folder / plan.key / "build.json"
    os.utime(record, (1, 1))
    run()
    assert record.stat().st_mtime > 1


def test_force_builds_again_from_the_start(run: Run, plan: BuildPlan, folder: Path, calls: Path) -> None:
    made = run()
    (made.package / "old").touch()
    assert run(force=True) == made
    assert not (made.package / "old").exists()
    assert _commands(calls).count("download") == 2


def test_a_damaged_entry_is_built_again(run: Run, calls: Path) -> None:
    made = run()
    (made.library / "libllama.so").write_bytes(b"")
    run()
    assert (made.library / "libllama.so").read_bytes() == b"library"
    assert _commands(calls).count("compiling") == 2


def _entry_of_an_earlier_version(plan: BuildPlan, folder: Path, tmp_path: Path) -> Path:
    wheel = folder / plan.key / WHEEL
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes((tmp_path / WHEEL).read_bytes())
    record = {**plan.build_facts(), "wheel": WHEEL, "wheel_bytes": wheel.stat().st_size}
    (folder / plan.key / "build.json").write_text(json.dumps(record))
    return wheel


def test_an_entry_with_a_wheel_only_is_unpacked(
    run: Run, plan: BuildPlan, folder: Path, calls: Path, tmp_path: Path
) -> None:
    wheel = _entry_of_an_earlier_version(plan, folder, tmp_path)
    made = run()
    assert (made.library / "libllama.so").read_bytes() == b"library"
    assert run() == made
    assert wheel.exists(), "earlier versions go on finding it"
    assert _commands(calls) == []


@pytest.mark.parametrize("damage", ["size", "content"])
def test_an_entry_with_a_damaged_wheel_is_built_again(
    run: Run, plan: BuildPlan, folder: Path, calls: Path, tmp_path: Path, damage: str
) -> None:
    wheel = _entry_of_an_earlier_version(plan, folder, tmp_path)
    wheel.write_bytes(b"" if damage == "size" else bytes(wheel.stat().st_size))
    run()
    assert _commands(calls) == ["download", "wheel", "compiling"]


def test_a_failed_build_shows_its_log_and_leaves_no_entry(
    run: Run, plan: BuildPlan, folder: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FAILS", "c++: fatal error: Killed signal terminated program cc1plus")
    with pytest.raises(NativeError, match="qwen-edge setup --jobs 1") as caught:
        run()
    assert str(folder / f"{plan.key}.log") in str(caught.value)
    assert any("| c++: fatal error: Killed" in line for line in said)
    assert not (folder / plan.key).exists()


def test_after_a_known_failure_the_build_goes_on(
    run: Run, said: list[str], calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FAILS", "cc1plus: out of memory")
    for _ in range(2):
        with pytest.raises(NativeError):
            run()
    monkeypatch.delenv("PIP_FAILS")
    run(jobs=1)
    assert _commands(calls).count("download") == 1
    assert "  going on with 1 compiled files of a run that did not end" in said


def test_without_a_network_it_is_said(
    run: Run, plan: BuildPlan, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOWNLOAD_FAILS", "NewConnectionError: Failed to establish a new connection")
    with pytest.raises(NativeError, match=r"fetching .* failed(?s:.*)With a connection, run qwen-edge setup"):
        run()
    monkeypatch.delenv("DOWNLOAD_FAILS")
    run()
    assert (folder / plan.key / "llama_cpp").is_dir()


def test_kept_files_that_do_not_build_are_given_up_once(
    run: Run, plan: BuildPlan, calls: Path, said: list[str]
) -> None:
    work = build.work_folder(plan)
    source = work / "source" / "llama_cpp_python-0.3.36"
    source.mkdir(parents=True)
    (source / "CMakeLists.txt").touch()
    (work / "objects").mkdir()
    (work / "objects" / "build.ninja").touch()
    (work / "objects" / "damaged").touch()
    run()
    assert "  that failed with what was there: starting clean" in said
    assert _commands(calls) == ["wheel", "download", "wheel", "compiling"]


@pytest.mark.parametrize("left", ["nothing", "half a source", "objects of make"])
def test_a_folder_that_cannot_be_used_is_cleared(run: Run, plan: BuildPlan, calls: Path, left: str) -> None:
    work = build.work_folder(plan)
    work.mkdir(parents=True)
    if left == "half a source":
        (work / "source.part").mkdir()
        (work / "source.part" / "llama_cpp_python-0.3.36.tar.gz").write_bytes(b"half")
    if left == "objects of make":
        (work / "source").mkdir()
        (work / "objects").mkdir()
        (work / "objects" / "Makefile").touch()
    run()
    assert _commands(calls) == ["download", "wheel", "compiling"]


def test_what_was_left_long_ago_is_removed(run: Run, folder: Path) -> None:
    for name, age_s in (("building-old", 8 * 86400), ("building-new", 3600)):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (time.time() - age_s,) * 2)
    run()
    assert [path.name for path in folder.glob("building-*")] == ["building-new"]


def test_a_full_disk_is_said_before_the_build(run: Run, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_needs, "NEEDED_DISK_BYTES", 1 << 60)
    with pytest.raises(NativeError, match=r"the build needs .* MB are free(?s:.*)QWEN_EDGE_CACHE"):
        run()
    assert not calls.exists()


def test_a_cache_that_cannot_be_made_is_said(run: Run, folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(NativeError, match=r"the build cannot write .*native folder(?s:.*)QWEN_EDGE_CACHE"):
        run()


@pytest.mark.parametrize("stage", ["tarfile.TarFile.extractall", "zipfile.ZipFile.extractall"])
def test_a_disk_that_fills_up_is_said(
    run: Run, plan: BuildPlan, folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a.cpp")

    with monkeypatch.context() as patch:
        patch.setattr(stage, fill)
        with pytest.raises(NativeError, match=r"cannot write a.cpp: No space left(?s:.*)QWEN_EDGE_CACHE"):
            run()
    assert not (folder / plan.key).exists()
    run()
    assert (folder / plan.key / "llama_cpp" / "lib").is_dir()


def test_a_source_that_comes_damaged_is_fetched_again(run: Run, calls: Path, tmp_path: Path) -> None:
    archive = tmp_path / "llama_cpp_python-0.3.36.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NativeError, match=r"is damaged(?s:.*)Run qwen-edge setup again"):
        run()
    archive.write_bytes(whole)
    run()
    assert _commands(calls) == ["download", "download", "wheel", "compiling"]


def test_jobs_are_the_users(plan: BuildPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def level(jobs: int | None) -> str:
        return build.build_environment(plan, tmp_path / "work", jobs)["CMAKE_BUILD_PARALLEL_LEVEL"]

    monkeypatch.delenv("CMAKE_BUILD_PARALLEL_LEVEL", raising=False)
    assert level(None) == str(build_needs.parallel_jobs())
    monkeypatch.setenv("CMAKE_BUILD_PARALLEL_LEVEL", "7")
    assert level(None) == "7"
    assert level(3) == "3"
    monkeypatch.setenv("CMAKE_BUILD_PARALLEL_LEVEL", "many")
    assert level(None) == str(build_needs.parallel_jobs())


def _script(tmp_path: Path) -> list[str]:
    """Return a command that runs `qwen-edge setup` with the stand-in, for a machine that has a compiler."""
    program = f"""\
        import sys
        from qwen_edge.cli.main import main
        from qwen_edge.native import build, build_needs
        from qwen_edge.native.build_plan import plan_build
        from qwen_edge.native.toolchain import Compiler, Cpu
        build_needs.pip_command = lambda work: [sys.executable, {str(tmp_path / "pip.py")!r}]
        cpu = Cpu(architecture="x86_64", name="a CPU", features=())
        compiler = Compiler(command="c++", family="gcc", version=(14,), banner="c++ 14")
        build.plan_here = lambda: plan_build(cpu, compiler, {{}}, version="0.3.36", target="linux")
        sys.exit(main(["setup"]))
    """
    return [sys.executable, "-c", textwrap.dedent(program)]


def _wait_for(calls: Path, command: str) -> int:
    """Wait for a line of the stand-in and return its process id."""
    deadline = time.monotonic() + 20
    while command not in _commands(calls):
        assert time.monotonic() < deadline, f"no {command!r} came"
        time.sleep(0.02)
    return int(calls.read_text().split()[-1])


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_ends_its_compilers_and_goes_on(
    calls: Path, folder: Path, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    env = {**os.environ, "PIP_SECONDS": "60"}
    with subprocess.Popen(_script(tmp_path), env=env, cwd=ROOT, stderr=subprocess.PIPE) as process:
        compiler = _wait_for(calls, "compiling")
        process.send_signal(number)
        process.communicate(timeout=20)
        assert process.returncode == exit_code
    assert not _is_running(compiler), "pip and what it started end too"
    assert [path.name for path in folder.iterdir() if path.is_dir()] == [next(folder.glob("building-*")).name]
    done = subprocess.run(_script(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    assert "going on with 1 compiled files" in done.stderr
    assert _commands(calls).count("download") == 1


def test_a_killed_build_leaves_no_entry_and_what_it_started_is_ended(
    calls: Path, folder: Path, tmp_path: Path
) -> None:
    env = {**os.environ, "PIP_SECONDS": "60"}
    with subprocess.Popen(_script(tmp_path), env=env, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        orphan = _wait_for(calls, "compiling")
        process.kill()
    assert not list(folder.glob("*/build.json"))
    assert _is_running(orphan), "or this test shows nothing"
    done = subprocess.run(_script(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    assert "going on with 1 compiled files" in done.stderr
    assert not _is_running(orphan)
    assert done.stdout.startswith("ready: ")


def test_the_second_of_two_builds_waits_and_finds_the_first(
    calls: Path, folder: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "the first goes on"
    env = {**os.environ, "PIP_WAITS_FOR": str(gate)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(_script(tmp_path), env=env, cwd=ROOT, text=True, **pipes) as first:
        _wait_for(calls, "compiling")
        with subprocess.Popen(_script(tmp_path), env=env, cwd=ROOT, text=True, **pipes) as second:
            assert second.stderr is not None
            has_waited = any("another run builds the same: waiting" in line for line in second.stderr)
            gate.touch()
            found, _ = second.communicate(timeout=20)
        ready, _ = first.communicate(timeout=20)
    assert has_waited
    assert (second.returncode, found) == (0, ready)
    assert _commands(calls).count("compiling") == 1
