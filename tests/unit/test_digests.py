from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_edge import digests
from qwen_edge.paths import cache_root


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really hashed, in order."""
    seen: list[Path] = []
    real = digests.sha256_file

    def count(path: str | os.PathLike[str]) -> str:
        seen.append(Path(path))
        return real(path)

    monkeypatch.setattr(digests, "sha256_file", count)
    return seen


def old_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
    return path


def test_an_unchanged_file_is_hashed_once(tmp_path: Path, hashed: list[Path]) -> None:
    file = old_file(tmp_path / "a", b"data")
    assert digests.known_digest(file) is None
    expected = hashlib.sha256(b"data").hexdigest()
    assert [digests.file_digest(file) for _ in range(3)] == [expected] * 3
    assert hashed == [file]
    (tmp_path / "link").symlink_to(file)
    assert digests.known_digest(tmp_path / "link") == expected


@pytest.mark.parametrize("change", ["size", "mtime", "inode"])
def test_any_change_is_noticed(tmp_path: Path, hashed: list[Path], change: str) -> None:
    file = old_file(tmp_path / "a", b"data")
    digests.file_digest(file)
    stat = file.stat()
    if change == "inode":
        other = tmp_path / "b"
        other.write_bytes(b"DATA")
        other.replace(file)
    else:
        file.write_bytes(b"DATA" if change == "mtime" else b"longer")
    # With "mtime" the time is another, else it is put back.
    mtime_ns = stat.st_mtime_ns + (1 if change == "mtime" else 0)
    os.utime(file, ns=(stat.st_atime_ns, mtime_ns))
    assert digests.file_digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(hashed) == 2


def test_a_file_of_this_moment_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"data")
    ahead_ns = file.stat().st_mtime_ns + 10**12
    os.utime(file, ns=(ahead_ns, ahead_ns))
    digests.file_digest(file)
    assert digests.known_digest(file) is None


@pytest.mark.parametrize("damage", [b"no database at all" * 100, b""])
def test_a_damaged_memory_only_costs_time(tmp_path: Path, damage: bytes) -> None:
    file = old_file(tmp_path / "a", b"data")
    memory = cache_root() / "digests.sqlite"
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_bytes(damage)
    expected = hashlib.sha256(b"data").hexdigest()
    assert digests.file_digest(file) == expected
    assert digests.file_digest(file) == expected
    assert digests.known_digest(file) == expected


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = old_file(tmp_path / "a", b"data")
    (tmp_path / "no folder").write_bytes(b"")
    monkeypatch.setenv("QWEN_EDGE_CACHE", str(tmp_path / "no folder"))
    assert digests.file_digest(file) == hashlib.sha256(b"data").hexdigest()


def test_several_processes_share_the_memory(tmp_path: Path) -> None:
    files = [old_file(tmp_path / str(i), bytes([i]) * 1000) for i in range(20)]
    code = (
        "import sys; from qwen_edge.digests import file_digest; [file_digest(path) for path in sys.argv[1:]]"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, *map(str, files)]) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert [digests.known_digest(file) for file in files] == [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    ]


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digests.file_digest(tmp_path / "absent")


def test_an_identity_hashes_nothing_and_uses_what_is_known(tmp_path: Path, hashed: list[Path]) -> None:
    file = old_file(tmp_path / "a.gguf", b"data")
    identity = digests.FileIdentity.of_parts(file)
    assert identity == digests.FileIdentity.of_parts(file)
    stat = file.stat()
    assert identity.to_json() == [[str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino]]
    assert hashed == []
    digest = digests.file_digest(file)
    assert identity.to_json() == [digest]
    old_file(file, b"atad")  # what is there now is not what the identity is of
    os.utime(file, ns=(0, stat.st_mtime_ns - 1))
    digests.file_digest(file)
    assert identity.to_json() == [[str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino]]
    file.unlink()
    assert digests.FileIdentity.of_parts(file).to_json() == []


def test_the_identity_of_a_split_file_is_that_of_all_parts(tmp_path: Path) -> None:
    parts = [old_file(tmp_path / f"a-0000{i}-of-00003.gguf", b"data") for i in (1, 2, 3)]
    before = digests.FileIdentity.of_parts(parts[0])
    assert [path for path, _ in before.facts] == [str(part) for part in parts]
    old_file(parts[2], b"other")
    assert digests.FileIdentity.of_parts(parts[0]) != before
