"""Checks of the disk: unwritable, full, homeless, leftovers."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_edge import paths
from qwen_edge.doctor import storage
from qwen_edge.doctor.report import Check
from qwen_edge.files import stale_parts


def by_name(checks: Any) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_cache_that_is_there() -> None:
    paths.cache_root().mkdir(parents=True)
    checks = by_name(storage.check_cache())
    assert checks["cache"].status == "ok"
    assert checks["cache"].fix is None
    assert "are free for" in checks["space"].found
    assert not list(paths.cache_root().iterdir()), "the file of the trial is gone"


def test_a_cache_to_come_leaves_nothing_behind() -> None:
    check = by_name(storage.check_cache())["cache"]
    assert check.status == "note"
    assert check.fix is not None
    assert check.fix.kind == "folder"
    assert not paths.cache_root().exists()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "you may not write there"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, number: int, reason: str) -> None:
    def refuse(**_: object) -> tuple[int, str]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    checks = by_name(storage.check_cache())
    assert checks.keys() == {"cache"}
    assert checks["cache"].status == "problem"
    assert checks["cache"].found.endswith(f"cannot be written: {reason}")
    assert checks["cache"].advice == "QWEN_EDGE_CACHE=/some/folder names another one"


def test_a_full_disk_that_still_takes_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file can be made on a full disk; its first bytes cannot."""
    before = set(storage.existing_folder(paths.cache_root()).iterdir())

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    assert by_name(storage.check_cache())["cache"].found.endswith("the disk is full")
    assert set(storage.existing_folder(paths.cache_root()).iterdir()) == before


def test_a_file_where_the_folder_should_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QWEN_EDGE_CACHE", str(tmp_path / "file" / "cache"))
    assert by_name(storage.check_cache())["cache"].found.endswith("a part of its path is a file")


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME", "QWEN_EDGE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    check = by_name(storage.check_cache())["cache"]
    assert check.status == "problem"
    assert "HOME is not set" in check.found


@pytest.mark.parametrize(
    ("free_bytes", "status"), [(2_000_000_000, "ok"), (500_000_000, "warning"), (50_000_000, "problem")]
)
def test_room(monkeypatch: pytest.MonkeyPatch, free_bytes: int, status: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
    assert by_name(storage.check_cache())["space"].status == status


def test_the_hubs_cache_is_named_only_where_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(storage.check_hub_cache()) == []
    monkeypatch.setattr(storage, "_why_unwritable", lambda _: "the disk is read-only")
    assert by_name(storage.check_hub_cache())["hub-cache"].status == "warning"


def test_leftovers_of_dead_runs_and_downloads_that_wait(dead_pid: int) -> None:
    models = paths.models_folder()
    (paths.cache_root() / "partial").mkdir(parents=True)
    models.mkdir()
    dead = models / f".model.gguf.{dead_pid}.abcd.part"
    alive = models / f".other.gguf.{os.getpid()}.abcd.part"
    dead.write_bytes(bytes(2_000_000))
    alive.touch()
    (paths.cache_root() / "partial" / "0f.part").write_bytes(bytes(3_000_000))
    assert list(stale_parts(paths.cache_root())) == [dead]
    checks = by_name(storage.check_leftovers())
    assert checks["leftovers"].found == "1 file of runs that were killed, 2.0 MB"
    assert checks["downloads"].found == "1 download not finished, 3.0 MB"


def test_nothing_left() -> None:
    assert list(storage.check_leftovers()) == []
