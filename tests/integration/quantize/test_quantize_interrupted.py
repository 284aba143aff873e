"""A run that is cut off leaves the old file or none, no process, and the next run works."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from qwen_edge.errors import NativeCrashError
from qwen_edge.quantize import quantize_file

# The slowest types: some seconds of work on one thread, so that there is a middle to be cut off in.
SLOW_TYPE = "IQ3_S"
OLD = b"the old file"

RUN = f"""
import sys
from qwen_edge.quantize import quantize_file
quantize_file(sys.argv[1], sys.argv[2], "{SLOW_TYPE}", n_threads=1, overwrite=True,
              progress=lambda done, total: print(done, flush=True))
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "x.gguf"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def assert_only_the_old_file(target: Path) -> None:
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert target.read_bytes() == OLD


def wait_until(is_true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.05)


def test_killed_child(tiny_bf16: Path, target: Path) -> None:
    def kill_child(done: int, _total: int) -> None:
        if done > 0:
            for child in psutil.Process().children():
                child.kill()

    with pytest.raises(NativeCrashError, match="signal SIGKILL"):
        quantize_file(tiny_bf16, target, SLOW_TYPE, n_threads=1, overwrite=True, progress=kill_child)
    assert_only_the_old_file(target)
    report = quantize_file(tiny_bf16, target, "Q8_0", overwrite=True)
    assert report.size_bytes == target.stat().st_size


def test_exception_in_the_progress_callback(tiny_bf16: Path, target: Path) -> None:
    def fail(done: int, _total: int) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_file(tiny_bf16, target, SLOW_TYPE, n_threads=1, overwrite=True, progress=fail)
    assert psutil.Process().children() == []
    assert_only_the_old_file(target)


def test_killed_parent(tiny_bf16: Path, target: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(tiny_bf16), str(target)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "0\n"
        assert int(parent.stdout.readline()) > 0
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    # The orphan notices, ends and takes its half file with it, long before it would have been done.
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, timeout_s=5.0)
    assert_only_the_old_file(target)
    report = quantize_file(tiny_bf16, target, "Q8_0", overwrite=True)
    assert sorted(path.name for path in target.parent.iterdir()) == [target.name, report.manifest.name]


def test_ctrl_c(tiny_bf16: Path, target: Path) -> None:
    command = [sys.executable, "-m", "qwen_edge", "quantize", str(tiny_bf16), "-o", str(target), "--force"]
    with subprocess.Popen(
        [*command, "--type", SLOW_TYPE, "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert "bits per weight" in process.stderr.readline()
        time.sleep(0.5)
        # As a terminal does it: to the whole group, the child included.
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout, stderr.strip()) == (130, "", "interrupted")
    assert_only_the_old_file(target)


def test_full_disk(tiny_bf16: Path, target: Path) -> None:
    """A limit on the length of files stands in for the disk: the failing write is the same to the C++ library."""

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    result = subprocess.run(
        [sys.executable, "-m", "qwen_edge", "quantize", tiny_bf16, "-o", target, "--force", "--type", "Q8_0"],
        capture_output=True,
        text=True,
        preexec_fn=limit_files,
    )
    assert result.returncode == 1
    assert "the disk is full, or files may not grow so large" in result.stderr
    assert "of 6.3 MB were written" in result.stderr
    assert_only_the_old_file(target)
