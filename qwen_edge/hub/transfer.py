"""The bytes of one file: fetched, continued where a connection or a process ended, and checked."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from qwen_edge.errors import DigestError, NoSpaceError, QwenEdgeError
from qwen_edge.files import existing_folder
from qwen_edge.hub.listing import RemoteFile
from qwen_edge.hub.web import (
    Patience,
    StatusError,
    TransientError,
    connection_error,
    open_url,
    wait_or_give_up,
)

_CHUNK_BYTES = 1 << 20
# A try that brought less than this counts as one that brought nothing; else a server could keep us for ever.
_PROGRESS_BYTES = 1 << 20
_SPARE_BYTES = 200 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
# No space, over quota, larger than files may be.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class _WrongLengthError(Exception):
    """The server has a file of another length than was stated."""


def fetch(file: RemoteFile, part: Path, patience: Patience, progress: Callable[[int], None]) -> str:
    """Bring a file's bytes to `part`, check them, and return their SHA-256.

    What `part` holds already is continued. Bytes that turn out wrong are thrown away, and fetched once more from the
    start.

    Args:
        file: What to fetch; a file without a stated size is as long as its server says.
        part: A name that nobody takes for the file itself.
        patience: When to give up.
        progress: Called with the bytes of this file that are here.

    Raises:
        DigestError: It was wrong twice; `part` is gone.
        HubUnreachableError, DownloadError: It could not be fetched to its end; `part` stays, to be continued.
        NoSpaceError: The disk is full; `part` stays.
    """
    for is_last in (False, True):
        with _Partial(part, file) as partial:
            try:
                _complete(file, partial, patience, progress)
                partial.flush()
                found = partial.digest
            except _WrongLengthError as error:
                found = str(error)
            except QwenEdgeError:
                raise
            except OSError as error:
                if error.errno not in _DISK_ERRORS:
                    raise
                raise NoSpaceError(
                    f"the disk of {part.parent} is full: {partial.position / 1e6:,.1f} MB of {file.name} are here",
                    hint="They are kept. Free some space and run it again: it goes on from there.",
                    code=error.errno,
                ) from error
        if found == file.digest:
            return partial.sha256
        part.unlink()
        if is_last:
            raise DigestError(
                f"{file.name} from {file.url}: {found} arrived, {file.digest} is stated",
                hint="It was thrown away. Try again later or another --source; if it stays so, do not trust that server.",
            )
    raise AssertionError("Bug: the last try returns or raises")


def require_free(folder: Path, needed_bytes: int) -> None:
    """Check that a file system has room, and some to spare.

    Raises:
        NoSpaceError: It has not.
    """
    folder = existing_folder(folder)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + _SPARE_BYTES:
        raise NoSpaceError(
            f"{needed_bytes / 1e9:.2f} GB are needed in {folder}, {free_bytes / 1e9:.2f} GB are free",
            hint=f"{_SPARE_BYTES / 1e9:.1f} GB should stay free. Free some space, or set QWEN_EDGE_CACHE (HF_HOME for "
            "what comes from Hugging Face) to a folder on a larger disk.",
        )


class _Partial:
    """A file in the making, with the digests of what is in it so far."""

    def __init__(self, path: Path, file: RemoteFile) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.folder = path.parent
        self._out = path.open("ab+")
        self._git = not file.sha256
        self._stated_bytes = file.size_bytes
        self.reset_digests()
        self._out.seek(0)
        while chunk := self._out.read(_CHUNK_BYTES):
            self._count(chunk)

    def reset_digests(self) -> None:
        self.position = 0
        self._sha256 = hashlib.sha256()
        self._sha1 = hashlib.sha1(b"blob %d\0" % (self._stated_bytes or 0), usedforsecurity=False)

    def _count(self, chunk: bytes) -> None:
        self.position += len(chunk)
        self._sha256.update(chunk)
        if self._git:
            self._sha1.update(chunk)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def digest(self) -> str:
        """In the form in which it is stated."""
        return self._sha1.hexdigest() if self._git else self.sha256

    def write(self, chunk: bytes) -> None:
        self._out.write(chunk)
        self._count(chunk)

    def clear(self) -> None:
        self._out.truncate(0)
        self.reset_digests()

    def flush(self) -> None:
        self._out.flush()
        os.fsync(self._out.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._out.close()
        except OSError:
            if kind is None:
                raise


def _complete(
    file: RemoteFile, partial: _Partial, patience: Patience, progress: Callable[[int], None]
) -> None:
    """Add to a partial file until it has all its bytes."""
    failures, furthest, etag = 0, partial.position, ""
    if file.size_bytes is not None and partial.position > file.size_bytes:
        partial.clear()
    progress(partial.position)
    while partial.position != file.size_bytes:
        try:
            with _ask(file, partial.position, etag, patience) as answer:
                etag = _continue_or_start_over(answer, file, partial, etag)
                total = _total_bytes(answer, partial.position)
                if file.size_bytes is not None and total not in (None, file.size_bytes):
                    raise _WrongLengthError(f"a file of {total} bytes instead of {file.size_bytes}")
                if file.size_bytes is None and total is not None:
                    require_free(partial.folder, total - partial.position)
                _copy(answer, file, partial, progress)
            if total is None or partial.position == total:
                return
            raise TransientError(f"{file.url} ended after {partial.position} of {total} bytes")
        except StatusError as error:
            if error.status != 416 or partial.position == 0:
                raise
            partial.clear()  # what is here is longer than what is there
        except TransientError as error:
            failures = 1 if partial.position - furthest >= _PROGRESS_BYTES else failures + 1
            furthest = max(furthest, partial.position)
            wait_or_give_up(error, failures, patience)


def _ask(file: RemoteFile, position: int, etag: str, patience: Patience) -> http.client.HTTPResponse:
    headers = dict(file.headers)
    if position:
        headers["Range"] = f"bytes={position}-"
        if etag and not etag.startswith("W/"):
            headers["If-Range"] = etag
    return open_url(file.url, headers=headers, timeout_s=patience.timeout_s)


def _continue_or_start_over(
    answer: http.client.HTTPResponse, file: RemoteFile, partial: _Partial, etag: str
) -> str:
    """Make the partial file end where the answer begins, and return the answer's ETag.

    Raises:
        TransientError: The answer begins elsewhere, or belongs to another version of the file.
    """
    new_etag = answer.headers.get("ETag", "")
    if _start(answer, file, partial.position) != partial.position:
        partial.clear()
        if answer.status == 206:
            raise TransientError(f"{file.url} sent other bytes than those asked for")
    elif partial.position and etag and new_etag != etag:
        partial.clear()
        raise TransientError(f"{file.url} changed while it was fetched")
    return new_etag


def _start(answer: http.client.HTTPResponse, file: RemoteFile, asked: int) -> int:
    """Return at which byte of the file an answer begins.

    ModelScope sends the bytes asked for with status 200, so the status alone does not tell.
    """
    if found := _CONTENT_RANGE.match(answer.headers.get("Content-Range", "")):
        return int(found[1])
    length = answer.headers.get("Content-Length", "")
    if asked and file.size_bytes is not None and length == str(file.size_bytes - asked):
        return asked
    return 0


def _total_bytes(answer: http.client.HTTPResponse, start: int) -> int | None:
    """Return the length of the whole file as an answer states it."""
    found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
    if found and found[2] != "*":
        return int(found[2])
    length = answer.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _copy(
    answer: http.client.HTTPResponse, file: RemoteFile, partial: _Partial, progress: Callable[[int], None]
) -> None:
    while True:
        try:
            chunk = answer.read1(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise connection_error(error, file.url) from error
        if not chunk:
            return
        if file.size_bytes is not None and partial.position + len(chunk) > file.size_bytes:
            raise _WrongLengthError(f"more than {file.size_bytes} bytes")
        partial.write(chunk)
        progress(partial.position)
