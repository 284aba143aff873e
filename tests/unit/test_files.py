from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qwen_edge.errors import NoSpaceError, TargetBusyError, WriteError
from qwen_edge.files import atomic_folder, atomic_path, sha256_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file [1].bin"
    with atomic_path(target) as part:
        part.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(target.parent) == [target.name]


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail() -> None:
        with atomic_path(target) as part:
            part.write_bytes(b"ne")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "file"
    code = (
        "import sys, time; from qwen_edge.files import atomic_path\n"
        f"with atomic_path({str(target)!r}) as part:\n"
        "    part.write_bytes(b'half'); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with atomic_path(target) as part:
        part.write_bytes(b"other")  # the first writer is alive: its part is left alone
    assert len(names(tmp_path)) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with atomic_path(target) as part:
        part.write_bytes(b"new")
    assert names(tmp_path) == ["file"]
    assert target.read_bytes() == b"new"


def test_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000_000)
    assert sha256_file(path) == hashlib.sha256(b"x" * 10_000_000).hexdigest()


def hold(target: Path, form: str) -> subprocess.Popen[bytes]:
    """Start a process that is writing a target; it is when this returns."""
    code = (
        f"import sys, time; from qwen_edge.files import atomic_path, atomic_folder\n"
        f"with {form} as part:\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=target.parent)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_second_writer_is_refused_while_the_first_lives(kind: str, tmp_path: Path) -> None:
    def write() -> None:
        with (
            atomic_path(tmp_path / "x", exclusive=True) if kind == "file" else atomic_folder(tmp_path / "x")
        ) as part:
            (part if kind == "file" else part / "f").write_bytes(b"new")

    form = "atomic_path('x', exclusive=True)" if kind == "file" else "atomic_folder('x')"
    with hold(tmp_path / "x", form) as process:
        with pytest.raises(TargetBusyError, match=rf"written by another run \(process {process.pid}\)"):
            write()
        assert len(names(tmp_path)) == 1, "the one that makes way leaves nothing"
        process.kill()
        process.wait()
    write()
    assert names(tmp_path) == ["x"]


def test_of_many_writers_at_once_never_two_are_at_work(tmp_path: Path) -> None:
    at_work, most, refused = 0, 0, 0
    lock = threading.Lock()

    def write() -> None:
        nonlocal at_work, most, refused
        try:
            with atomic_path(tmp_path / "x", exclusive=True) as part:
                with lock:
                    at_work += 1
                    most = max(most, at_work)
                part.write_bytes(b"new")
                time.sleep(0.01)
                with lock:
                    at_work -= 1
        except TargetBusyError:
            refused += 1

    threads = [threading.Thread(target=write) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert refused < 24
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full; 0.0 kB of 12.0 MB were written"),
        (errno.EDQUOT, "your quota on the disk is used up"),
        (errno.EFBIG, "files may not grow so large"),
    ],
)
def test_no_space_is_one_error_with_figures(code: int, words: str, tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_path(tmp_path / "x", needed_bytes=12_000_000):
            raise OSError(code, os.strerror(code))

    with pytest.raises(NoSpaceError) as caught:
        fail()
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == code
    assert words in caught.value.message
    assert f"MB are free in {tmp_path}" in caught.value.message
    assert "Errno" not in str(caught.value)


def test_a_target_that_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target, words in [
        (tmp_path / "file" / "x", "a part of its path is a file"),
        (tmp_path / ("x" * 300), "its name is too long"),
    ]:
        with pytest.raises(WriteError, match=words), atomic_path(target):
            raise AssertionError("Bug: it was made")


def test_an_error_of_another_file_is_passed_on(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_path(tmp_path / "x"):
            raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "source"))

    with pytest.raises(PermissionError) as caught:
        fail()
    assert not isinstance(caught.value, WriteError)
