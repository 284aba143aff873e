"""Files that are whole or absent: written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from qwen_edge.errors import NoSpaceError, QwenEdgeError, ReadError, TargetBusyError, WriteError

_CHUNK_BYTES = 8 << 20
# How often, and after which pause, a second writer looks whether the first is still there.
_TRIES = 4
_PAUSE_S = (0.02, 0.1)

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota on the disk is used up",
    errno.EFBIG: "files may not grow so large (ulimit -f, or the file system)",
}
_REFUSED = {
    errno.EACCES: "you may not write there",
    errno.EPERM: "you may not write there",
    errno.EROFS: "it is read-only",
    errno.ENOTDIR: "a part of its path is a file",
    errno.EEXIST: "a part of its path is a file",
    errno.EISDIR: "a folder has its name",
    errno.ENAMETOOLONG: "its name is too long",
    errno.ELOOP: "links in its path lead in a circle",
}

_UNREADABLE = {
    errno.EACCES: "you may not read it",
    errno.EPERM: "you may not read it",
    errno.EIO: "the disk reports an error",
}


@contextlib.contextmanager
def atomic_path(
    target: str | os.PathLike[str], *, needed_bytes: int | None = None, exclusive: bool = False
) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is flushed and renamed to `target`, else removed.

    A killed process leaves the old file (or none) and a `.NAME.*.part` file, which the next call for the same
    target removes when its writer is gone.

    Args:
        target: The file to make. Its folder is created.
        needed_bytes: Length that it will have, for the message where the disk is full.
        exclusive: Refuse where another writer is at work. Else the one that ends last has the name.

    Raises:
        NoSpaceError: The disk is full.
        TargetBusyError: Another process, or thread, writes the same target.
        WriteError: The folder cannot be made or written.
    """
    target = Path(target)
    part = _new_part(target, functools.partial(_make_file, target), exclusive=exclusive)
    try:
        with writing(target, part, needed_bytes=needed_bytes):
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.chmod(0o666 & ~current_umask())
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: str | os.PathLike[str], *, needed_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success its files are flushed and it is renamed, else removed.

    A folder that is there is moved aside before and removed afterwards. A killed process leaves the old folder or none
    under the name, and a `.NAME.*.part` folder, which the next call for the same target removes.

    Args:
        target: The folder to make, without sub-folders. Its parent is created.
        needed_bytes: Length that its files will have, for the message where the disk is full.

    Raises:
        NoSpaceError: The disk is full.
        TargetBusyError: Another process, or thread, writes the same target.
        WriteError: The parent cannot be made or written.
    """
    target = Path(target)
    part = _new_part(target, functools.partial(_make_folder, target), exclusive=True)
    try:
        with writing(target, part, needed_bytes=needed_bytes):
            yield part
            for path in part.iterdir():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            part.chmod(0o777 & ~current_umask())
            if target.is_dir():
                old = _make_folder(target, f".{target.name}.{os.getpid()}.")
                target.replace(old)
                part.replace(target)
                shutil.rmtree(old)
            else:
                part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in our words why a file cannot be read, where the system says so while the block runs.

    Raises:
        ReadError: It may not be read, or the disk fails. That it is not there is left to the caller.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        raise ReadError(
            f"{path} cannot be read: {_UNREADABLE[error.errno]}",
            hint="Check its permissions, and those of the folders above it."
            if error.errno in _REFUSED
            else "Copy or fetch it again, to another disk if need be.",
            code=error.errno,
        ) from error


@contextlib.contextmanager
def writing(
    target: Path,
    part: Path | None = None,
    *,
    needed_bytes: int | None = None,
    hint: str = "Name another file or folder.",
) -> Iterator[None]:
    """Say in our words why a file or folder cannot be written, where the system says so while the block runs.

    Args:
        target: What is to be written, for the message.
        part: Where its bytes gather; an error that names another file is passed on as it is. None: all are about `target`.
        needed_bytes: Length of the whole.
        hint: What to do where it may not be written.

    Raises:
        NoSpaceError, WriteError: It cannot be written.
    """
    try:
        yield
    except QwenEdgeError:
        raise
    except OSError as error:
        named = None if part is None or error.filename is None else Path(os.fsdecode(error.filename))
        if named is not None and part not in (named, *named.parents):
            raise
        if error.errno in _FULL:
            raise no_space_error(
                target, part, needed_bytes, reason=_FULL[error.errno], code=error.errno
            ) from error
        if error.errno in _REFUSED:
            raise WriteError(
                f"{target} cannot be written: {_REFUSED[error.errno]}",
                hint=hint,
                code=error.errno,
            ) from error
        raise


def no_space_error(
    target: Path,
    part: Path | None,
    needed_bytes: int | None,
    *,
    reason: str = "the disk is full, or files may not grow so large",
    code: int = errno.ENOSPC,
) -> NoSpaceError:
    """Return the error of a target that found no space, with the bytes that are written, needed and free."""
    folder = existing_folder(target.absolute().parent)
    figures = f"{_size(shutil.disk_usage(folder).free)} are free in {folder}"
    if part is not None:
        files = [part] if part.is_file() else part.glob("*")
        whole = f" of {_size(needed_bytes)}" if needed_bytes else ""
        figures = f"{_size(sum(file.stat().st_size for file in files))}{whole} were written, {figures}"
    return NoSpaceError(
        f"{target} cannot be written: {reason}; {figures}",
        hint="Nothing was changed. Free some space, or name a folder on another disk.",
        code=code,
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.1f} kB"


def current_umask() -> int:
    """Return the bits that new files do not get; the system tells them only by setting others."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _new_part(target: Path, make: Callable[[str], Path], *, exclusive: bool) -> Path:
    """Make a temporary file or folder beside a target.

    Whoever is exclusive makes its own before it looks for others, so that of two at least one sees the other; who sees
    one makes way and looks again, in case that one does the same.

    Raises:
        TargetBusyError: Another writer is there and stays.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_parts(target)
    others: list[Path] = []
    for _ in range(_TRIES):
        with writing(target):
            part = make(f".{target.name}.{os.getpid()}.")
        others = [path for path in _parts(target) if path.name != part.name] if exclusive else []
        if not others:
            return part
        _remove(part)
        time.sleep(random.uniform(*_PAUSE_S))
    raise TargetBusyError(
        f"{target} is being written by another run (process {_writer_of(others[0], target)})",
        hint="Wait until it is done, or name another file or folder.",
    )


def _make_file(target: Path, prefix: str) -> Path:
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=".part", dir=target.parent)
    os.close(handle)
    return Path(name)


def _make_folder(target: Path, prefix: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=target.parent))


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def _parts(target: Path) -> Iterator[Path]:
    """Yield the temporary files and folders of all writers of a target, dead or alive."""
    yield from (
        part
        for part in target.parent.glob(f".{glob.escape(target.name)}.*.part")
        if _writer_of(part, target) is not None
    )


def _writer_of(part: Path, target: Path) -> int | None:
    pid = part.name.removeprefix(f".{target.name}.").split(".")[0]
    return int(pid) if pid.isdigit() else None


def _remove_stale_parts(target: Path) -> None:
    for part in _parts(target):
        pid = _writer_of(part, target)
        if pid is not None and not is_running(pid):
            _remove(part)


def remove_stale_parts(folder: Path) -> None:
    """Remove the temporary files that killed processes left below a folder, whatever their target.

    Raises:
        OSError: One cannot be removed.
    """
    for part in stale_parts(folder):
        part.unlink(missing_ok=True)


def stale_parts(folder: Path) -> Iterator[Path]:
    """Yield the temporary files `.NAME.PID.x.part` below a folder whose writers are gone."""
    for part in folder.rglob(".*.part"):
        pid = part.name.split(".")[-3]
        if pid.isdigit() and not is_running(int(pid)) and part.is_file():
            yield part


def is_running(pid: int) -> bool:
    """Return whether there is a process of this number, of whatever user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def existing_folder(path: Path) -> Path:
    """Return a folder, or the nearest one above it that exists: where the free space of a file to come is told."""
    while not path.exists():
        path = path.parent
    return path


def check_free_space(target: Path, n_bytes: int) -> None:
    """Fail at once rather than after minutes, where a file or folder to come cannot fit.

    Raises:
        NoSpaceError: With both numbers.
    """
    folder = existing_folder(target.resolve().parent)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < n_bytes:
        raise NoSpaceError(
            f"not enough disk space for {target}: it takes {_size(n_bytes)}, {_size(free_bytes)} are free "
            f"in {folder}",
            hint="Free some space, or name a folder on another disk.",
        )


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as lower-case hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
