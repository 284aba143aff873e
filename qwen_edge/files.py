"""Files that are whole or absent: written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_CHUNK_BYTES = 8 << 20


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is flushed and renamed to `target`, else removed.

    A killed process leaves the old file (or none) and a `.NAME.*.part` file, which the next call for the same
    target removes when its writer is gone.

    Args:
        target: The file to make. Its folder is created.

    Raises:
        OSError: The folder cannot be written, or the disk is full.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_parts(target)
    handle, name = tempfile.mkstemp(
        prefix=f".{target.name}.{os.getpid()}.", suffix=".part", dir=target.parent
    )
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success its files are flushed and it is renamed, else removed.

    A folder that is there is moved aside before and removed afterwards. A killed process leaves the old folder or none
    under the name, and a `.NAME.*.part` folder, which the next call for the same target removes.

    Args:
        target: The folder to make, without sub-folders. Its parent is created.

    Raises:
        OSError: The parent cannot be written, or the disk is full.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_parts(target)
    prefix = f".{target.name}.{os.getpid()}."
    part = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=target.parent))
    try:
        yield part
        for path in part.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o777 & ~umask)
        if target.is_dir():
            old = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=target.parent))
            target.replace(old)
            part.replace(target)
            shutil.rmtree(old)
        else:
            part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _remove_stale_parts(target: Path) -> None:
    for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        pid = part.name.removeprefix(f".{target.name}.").split(".")[0]
        if pid.isdigit() and not is_running(int(pid)):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def remove_stale_parts(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder, whatever their target.

    Raises:
        OSError: One cannot be removed.
    """
    for part in folder.glob(".*.part"):
        pid = part.name.split(".")[-3]
        if pid.isdigit() and not is_running(int(pid)) and part.is_file():
            part.unlink(missing_ok=True)


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
        OSError: ENOSPC, with both numbers.
    """
    free_bytes = shutil.disk_usage(existing_folder(target.resolve().parent)).free
    if free_bytes < n_bytes:
        raise OSError(
            errno.ENOSPC,
            f"not enough disk space: it takes {n_bytes / 1e6:.1f} MB, {free_bytes / 1e6:.1f} MB are free",
            str(target),
        )


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as lower-case hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
