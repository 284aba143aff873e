"""Checks of the disk: where files of ours go, whether they can, what was left half done."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qwen_edge import paths
from qwen_edge.doctor.report import Check, Fix
from qwen_edge.errors import NoFolderError
from qwen_edge.files import existing_folder, stale_parts

GROUP = "Disk"

# The smallest model in Q4_0 is 0.4 GB, building the native library takes 0.7.
_LITTLE_BYTES = 1_500_000_000
_TOO_LITTLE_BYTES = 100_000_000
_ELSEWHERE = "QWEN_EDGE_CACHE=/some/folder names another one"
_REASONS = {
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "you may not write there",
    errno.EPERM: "you may not write there",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota is used up",
    errno.ENOTDIR: "a part of its path is a file",
    errno.EEXIST: "a part of its path is a file",
}


def check_cache() -> Iterator[Check]:
    """Whether the cache folder is there, can be written, and has room."""
    try:
        folder = paths.cache_root().absolute()
    except NoFolderError:
        yield _homeless()
        return
    reason = _why_unwritable(existing_folder(folder))
    if reason:
        yield Check(
            group=GROUP,
            name="cache",
            status="problem",
            found=f"the cache folder {folder} cannot be written: {reason}",
            cost="models cannot be fetched, the native library cannot be built",
            advice=_ELSEWHERE,
        )
        return
    is_there = folder.is_dir()
    yield Check(
        group=GROUP,
        name="cache",
        status="ok" if is_there else "note",
        found=f"the cache folder {folder} {'can be written' if is_there else 'is made with the first file in it'}",
        fix=None if is_there else Fix(kind="folder", does=f"make {folder}"),
    )
    yield from _space(folder)


def check_hub_cache() -> Iterator[Check]:
    """The cache of Hugging Face, where it is not on the same disk."""
    from qwen_edge.hub.hf_settings import cache_folder

    folder = cache_folder()
    near = existing_folder(folder.absolute())
    if reason := _why_unwritable(near):
        yield Check(
            group=GROUP,
            name="hub-cache",
            status="warning",
            found=f"the cache of Hugging Face, {folder}, cannot be written: {reason}",
            cost="checkpoints cannot be fetched",
            advice="HF_HOME=/some/folder names another one",
        )
    elif near.stat().st_dev != existing_folder(paths.cache_root().absolute()).stat().st_dev:
        yield from _space(folder, name="hub-space")


def check_leftovers() -> Iterator[Check]:
    """What interrupted runs left in the cache."""
    folder = paths.cache_root()
    stale = tuple(stale_parts(folder))
    if stale:
        yield Check(
            group=GROUP,
            name="leftovers",
            status="note",
            found=f"{len(stale)} file{'s' * (len(stale) > 1)} of runs that were killed, {_megabytes(stale)}",
            advice="qwen-edge doctor --fix",
            fix=Fix(kind="leftovers", does=f"remove {len(stale)} files of runs that were killed"),
        )
    partial = folder / "partial"
    waiting = tuple(path for path in partial.glob("*.part") if path.is_file() and path.stat().st_size)
    if waiting:
        yield Check(
            group=GROUP,
            name="downloads",
            status="note",
            found=f"{len(waiting)} download{'s' * (len(waiting) > 1)} not finished, {_megabytes(waiting)}",
            advice="qwen-edge pull NAME goes on where it stopped",
        )


def _homeless() -> Check:
    return Check(
        group=GROUP,
        name="cache",
        status="problem",
        found="there is no home folder (HOME is not set), so no place for models and builds",
        cost="models cannot be fetched, the native library cannot be built",
        advice=_ELSEWHERE,
    )


def _space(folder: Path, *, name: str = "space") -> Iterator[Check]:
    free_bytes = shutil.disk_usage(existing_folder(folder)).free
    is_short = free_bytes < _LITTLE_BYTES
    is_full = free_bytes < _TOO_LITTLE_BYTES
    yield Check(
        group=GROUP,
        name=name,
        status="problem" if is_full else "warning" if is_short else "ok",
        found=f"{free_bytes / 1e9:.2f} GB are free for {folder}",
        cost="the smallest model takes 0.4 GB, building the native library 0.7 GB" if is_short else "",
        advice=f"Free some space; {_ELSEWHERE}" if is_short else "",
    )


def _why_unwritable(folder: Path) -> str:
    """Return why no file can be made in a folder, "" where one can."""
    try:
        handle, name = tempfile.mkstemp(prefix=".qwen-edge-doctor.", dir=folder)
        try:
            os.write(handle, bytes(4096))
        finally:
            os.close(handle)
            Path(name).unlink()
    except OSError as error:
        return _REASONS.get(error.errno or 0, error.strerror or str(error))
    return ""


def _megabytes(files: tuple[Path, ...]) -> str:
    return f"{sum(path.stat().st_size for path in files) / 1e6:,.1f} MB"
