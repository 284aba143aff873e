from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_edge.files import atomic_path, sha256_file


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
