"""Evaluated prompt prefixes on disk: the system prompt and the tools of an application are read once per machine.

::

    CACHE/prefixes/KEY.prefix    KEY: SHA-256 of fingerprint and tokens     qwen_edge/kv_fingerprint.py, state_file.py

A name says all that its contents depend on, so nothing is ever out of date: whatever changes, weights, library,
settings, adapters, template or text, leads to another name, and that is a miss. Entries are written whole or not at
all, never changed, and checked when they are read; a damaged one is removed and is a miss. So any number of processes
can use the folder at once without a lock. The least recently used go when it grows beyond its limit.

Weights are told apart by the digest that is already known of them, else by path, size, modification time and inode
(qwen_edge/digests.py): a file of gigabytes is never hashed before the first answer.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge.errors import ConfigError, FormatError, NoFolderError
from qwen_edge.files import remove_stale_parts
from qwen_edge.paths import prefixes_folder
from qwen_edge.state_file import read_state_file, write_state_file

LIMIT_VARIABLE = "QWEN_EDGE_PREFIX_CACHE_BYTES"
DEFAULT_LIMIT_BYTES = 1 << 30
# Reading an entry costs about as much as evaluating some tens of tokens.
MIN_TOKENS = 256
_KIND = "prefix"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixEntry:
    """An evaluated prefix.

    Attributes:
        state: The KV cache, for Context.load_state().
        prefill_s: Seconds that evaluating it took.
    """

    state: NDArray[np.uint8]
    prefill_s: float


class PrefixCache:
    """The entries of one model as it is loaded, in a folder that all models share."""

    def __init__(
        self,
        folder: Path,
        fingerprint: Callable[[], Mapping[str, Any] | None],
        *,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        min_tokens: int = MIN_TOKENS,
    ) -> None:
        """Look at nothing yet.

        Args:
            folder: Where entries stand.
            fingerprint: What they depend on besides their tokens; asked once, at the first use.
            limit_bytes: Most bytes of all entries together.
            min_tokens: Shorter prefixes are not kept.
        """
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.min_tokens = min_tokens
        self._make_fingerprint = fingerprint
        self._writers: list[threading.Thread] = []
        self._lock = threading.Lock()

    @functools.cached_property
    def _fingerprint(self) -> Mapping[str, Any] | None:
        return self._make_fingerprint()

    @property
    def is_usable(self) -> bool:
        """Whether the engine can save what it has evaluated."""
        return self._fingerprint is not None

    def path_of(self, tokens: Sequence[int]) -> Path:
        """Return where the entry of a prefix stands, whether there is one or not."""
        digest = hashlib.sha256(json.dumps(self._fingerprint, sort_keys=True).encode())
        digest.update(np.asarray(tokens, dtype="<i4").tobytes())
        return self.folder / f"{digest.hexdigest()}.{_KIND}"

    def load(self, tokens: Sequence[int]) -> PrefixEntry | None:
        """Return the entry of a prefix; None where there is none that can be used.

        A damaged entry is removed.
        """
        path = self.path_of(tokens)
        try:
            content = read_state_file(path, _KIND)
            prefill_s = content.facts["prefill_s"]
            if content.tokens != list(tokens) or content.facts["fingerprint"] != self._fingerprint:
                raise FormatError(f"{path} stands under a name that is not its own")
            if not isinstance(prefill_s, int | float):
                raise FormatError(f"{path} does not say how long it took")
        except (FormatError, KeyError):
            self.remove(tokens)
            return None
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now: the least recently used go first
        return PrefixEntry(state=content.state, prefill_s=float(prefill_s))

    def store(self, tokens: Sequence[int], state: NDArray[np.uint8], prefill_s: float) -> bool:
        """Keep an evaluated prefix, and remove the least recently used entries beyond the limit.

        Returns:
            Whether it was kept: not where it alone is larger than the limit, or the folder cannot be written.
        """
        if len(state) > self.limit_bytes:
            return False
        path = self.path_of(tokens)
        facts = {"fingerprint": self._fingerprint, "prefill_s": prefill_s}
        try:
            # Prompts can be private: the folder is for its owner only.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_state_file(path, _KIND, facts, tokens, state)
            self._evict(newest=path)
        except OSError:
            return False  # it only costs time
        return True

    def store_later(self, tokens: Sequence[int], state: NDArray[np.uint8], prefill_s: float) -> None:
        """Do the same beside the caller: a slow disk does not hold up the answer. The process ends after it is done."""
        writer = threading.Thread(
            target=self.store, args=(tuple(tokens), state, prefill_s), name="qwen-edge-prefix-cache"
        )
        with self._lock:
            writer.start()
            self._writers = [*(thread for thread in self._writers if thread.is_alive()), writer]

    def wait(self) -> None:
        """Return when all that was to be stored later is."""
        with self._lock:
            writers, self._writers = self._writers, []
        for writer in writers:
            writer.join()

    def remove(self, tokens: Sequence[int]) -> None:
        """Remove the entry of a prefix, if there is one."""
        with contextlib.suppress(OSError):
            self.path_of(tokens).unlink(missing_ok=True)

    def size_bytes(self) -> int:
        """Return the bytes of all entries in the folder, those of other models included."""
        return sum(size for _, size, _ in self._entries())

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Return (time of last use in ns, bytes, path) of all entries, longest unused first."""
        entries = []
        for path in self.folder.glob(f"*.{_KIND}"):
            with contextlib.suppress(OSError):  # another process may have removed it
                stat = path.stat()
                entries.append((stat.st_mtime_ns, stat.st_size, path))
        return sorted(entries)

    def _evict(self, newest: Path) -> None:
        remove_stale_parts(self.folder)
        entries = self._entries()
        excess = sum(size for _, size, _ in entries) - self.limit_bytes
        for _, size, path in entries:
            if excess <= 0:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                excess -= size


def open_prefix_cache(fingerprint: Callable[[], Mapping[str, Any] | None]) -> PrefixCache | None:
    """Return the user's prefix cache; None where QWEN_EDGE_PREFIX_CACHE_BYTES is 0 or there is no home folder.

    Raises:
        ConfigError: The variable holds no number of bytes.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        limit_bytes = int(text) if text.strip() else DEFAULT_LIMIT_BYTES
    except ValueError:
        limit_bytes = -1
    if limit_bytes < 0:
        raise ConfigError(
            f"{LIMIT_VARIABLE} is {text!r}, expected a number of bytes",
            hint="0 switches the prefix cache off.",
        )
    if not limit_bytes:
        return None
    try:
        folder = prefixes_folder()
    except NoFolderError:
        return None  # it only costs time
    return PrefixCache(folder, fingerprint, limit_bytes=limit_bytes)
