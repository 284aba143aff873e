"""What was typed before, for the arrow keys: a file of bounded size that only its owner can read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory

from qwen_edge.files import atomic_path

_MAX_ENTRIES = 1000
_MAX_BYTES = 1_000_000
_MODE = 0o600


class BoundedHistory(FileHistory):
    """The history file of prompt_toolkit, kept small and private.

    A file that cannot be used costs nothing but the memory of this run's turns; `problem` says why.

    Attributes:
        path: Where it is.
        problem: What went wrong with it, "" when nothing did.
    """

    def __init__(self, path: Path, *, max_entries: int = _MAX_ENTRIES, max_bytes: int = _MAX_BYTES) -> None:
        """Open or make it.

        Args:
            path: Its folder is created.
            max_entries: The oldest beyond that are dropped,
            max_bytes: and those that do not fit; an entry of more than a quarter of this is not stored.
        """
        super().__init__(str(path))
        self.path = path
        self.problem = ""
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _MODE))
            path.chmod(_MODE)
            self._shorten()
        except OSError as error:
            self._give_up(error)

    def load_history_strings(self) -> Iterable[str]:
        """Return the entries, the newest first."""
        if self.problem:
            return ()
        try:
            return list(super().load_history_strings())
        except OSError as error:
            self._give_up(error)
            return ()

    def store_string(self, string: str) -> None:
        """Append an entry."""
        if self.problem or len(string.encode("utf-8", "replace")) > self._max_bytes // 4:
            return
        try:
            super().store_string(string)
            if self.path.stat().st_size > self._max_bytes:
                self._shorten()
        except OSError as error:
            self._give_up(error)

    def _shorten(self) -> None:
        """Write the newest entries anew where there are too many, down to half of what may be."""
        entries = list(super().load_history_strings())
        if len(entries) <= self._max_entries and self.path.stat().st_size <= self._max_bytes:
            return
        kept: list[str] = []
        n_bytes = 0
        for entry in entries[: self._max_entries // 2]:
            n_bytes += len(entry.encode("utf-8", "replace"))
            if n_bytes > self._max_bytes // 2:
                break
            kept.append(entry)
        with atomic_path(self.path) as part:
            part.write_text("".join(f"\n{_lines(entry)}" for entry in reversed(kept)), encoding="utf-8")
        self.path.chmod(_MODE)

    def _give_up(self, error: OSError) -> None:
        self.problem = f"{self.path} cannot be used: {error.strerror or error}"


def _lines(entry: str) -> str:
    return "".join(f"+{line}\n" for line in entry.split("\n"))
