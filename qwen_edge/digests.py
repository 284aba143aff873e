"""SHA-256 of files, remembered: a file that has not changed is hashed once.

A digest is kept under the file's path and is good as long as size, modification time and inode are the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.files import sha256_file
from qwen_edge.paths import cache_root

_log = logging.getLogger(__name__)

# A file that changed less than this before it was looked at could change again within one tick of the file
# system's clock, and look the same. Source: "racy-git" in git's technical documentation.
_RACY_NS = 100_000_000
_LOCK_TIMEOUT_S = 5.0

# Source: llama.cpp, llama_split_path: "NAME-00001-of-00003.gguf".
_FIRST_PART = re.compile(r"(?P<name>.*)-00001-of-(?P<count>\d{5})\.gguf")

_TABLE = (
    "CREATE TABLE IF NOT EXISTS digests"
    " (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER, sha256 TEXT)"
)


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as lower-case hex, from memory where the file is unchanged.

    Raises:
        OSError: The file cannot be read.
    """
    known = known_digest(path)
    if known is not None:
        return known
    before = Path(path).stat()
    _log.debug("hashing %s, %d bytes", path, before.st_size)
    digest = sha256_file(path)
    if _facts(before) == _facts(Path(path).stat()):
        remember_digest(path, digest)
    return digest


def known_digest(path: str | os.PathLike[str]) -> str | None:
    """Return the remembered SHA-256 of a file; None where there is none or the file has changed since.

    Raises:
        OSError: There is no such file.
    """
    key = os.path.realpath(path)
    facts = _facts(Path(key).stat())
    rows = _execute("SELECT size, mtime_ns, inode, sha256 FROM digests WHERE path = ?", key)
    return str(rows[0][3]) if rows and rows[0][:3] == facts else None


def remember_digest(path: str | os.PathLike[str], digest: str) -> None:
    """Keep the SHA-256 of a file; a file that was written a moment ago is not kept, see _RACY_NS.

    Nothing is kept where the cache folder cannot be written: it only costs time.
    """
    key = os.path.realpath(path)
    facts = _facts(Path(key).stat())
    if time.time_ns() - facts[1] >= _RACY_NS:
        _execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", key, *facts, digest)


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Which bytes a file held at one moment, at the price of looking at its directory entry.

    Attributes:
        facts: (path, size, modification time, inode) of the file, or of each part of a split one.
    """

    facts: tuple[tuple[str, tuple[int, int, int]], ...]

    @classmethod
    def of_parts(cls, path: str | os.PathLike[str]) -> FileIdentity:
        """Look at a file; of a split GGUF file at all parts. What is missing is left out: loading will say so."""
        first = Path(os.path.realpath(path))
        parts = [first]
        split = _FIRST_PART.fullmatch(first.name)
        if split:
            name, count = split["name"], int(split["count"])
            parts = [first.with_name(f"{name}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
        return cls(tuple((str(part), _facts(part.stat())) for part in parts if part.is_file()))

    def to_json(self) -> list[Any]:
        """Return it JSON-ready: for each part the remembered SHA-256, where there is one, else the facts.

        Nothing is hashed. The facts are as good as the digest, which is remembered under them, but differ between two
        copies of a file.
        """
        return [self._digest(path, facts) or [path, *facts] for path, facts in self.facts]

    @staticmethod
    def _digest(path: str, facts: tuple[int, int, int]) -> str | None:
        with contextlib.suppress(OSError):
            digest = known_digest(path)
            return digest if _facts(Path(path).stat()) == facts else None
        return None


def _facts(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _execute(statement: str, *values: str | int) -> list[tuple[Any, ...]]:
    """Run one statement on the table; no rows where the table cannot be used."""
    try:
        file = cache_root() / "digests.sqlite"
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(file, timeout=_LOCK_TIMEOUT_S)) as connection, connection:
            connection.execute(_TABLE)
            return connection.execute(statement, values).fetchall()
    except sqlite3.OperationalError:  # locked for long, read-only, no space
        return []
    except sqlite3.DatabaseError:  # damaged: whatever it is, it holds nothing that cannot be computed again
        with contextlib.suppress(OSError):
            file.unlink()
        return []
    except OSError:
        return []
