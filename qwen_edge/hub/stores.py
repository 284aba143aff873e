"""Where fetched files are put: a folder of ours, or the Hugging Face cache that other tools read too."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from qwen_edge.digests import file_digest, remember_digest
from qwen_edge.errors import DownloadError
from qwen_edge.files import atomic_path, current_umask
from qwen_edge.hub.listing import Listing, RemoteFile
from qwen_edge.hub.transfer import fetch
from qwen_edge.hub.web import Patience
from qwen_edge.paths import cache_root

_CHUNK_BYTES = 1 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Older than qwen_edge.digests asks of a file that it remembers.
_AGE_NS = 1_000_000_000


class Store(ABC):
    """One place for files of one revision. A file gets its name there when its digest is right, not before."""

    @abstractmethod
    def path(self, file: RemoteFile) -> Path:
        """Return the name that a file has once it is whole."""

    @abstractmethod
    def part(self, file: RemoteFile) -> Path:
        """Return where its bytes gather, on the same file system."""

    @abstractmethod
    def lock(self, file: RemoteFile) -> Path:
        """Return the lock that its one writer holds."""

    @abstractmethod
    def has(self, file: RemoteFile) -> bool:
        """Return whether the file is there, right or wrong; reads nothing."""

    @abstractmethod
    def find(self, file: RemoteFile) -> Path | None:
        """Return the file if it is there with the right digest; a wrong one is moved out of the way."""

    @abstractmethod
    def place(self, part: Path, file: RemoteFile) -> Path:
        """Give a checked file its name, and return that."""

    def bring(
        self,
        file: RemoteFile,
        patience: Patience,
        progress: Callable[[int], None],
        say: Callable[[str], None],
    ) -> tuple[Path, bool]:
        """Return the file and whether it was there before; it is fetched by one process at a time.

        Raises:
            DownloadError: As fetch() does.
        """
        with one_writer(self.lock(file), file.name, say):
            found = self.find(file)
            if found is not None:
                return found, True
            part = self.part(file)
            sha256 = fetch(file, part, patience, progress)
            settle(part)
            path = self.place(part, file)
            remember_digest(path, sha256)
            _damaged(path.resolve()).unlink(missing_ok=True)
            return path, False

    def missing_bytes(self, file: RemoteFile) -> int:
        """Return what fetching a file will add to the disk, as far as it is known."""
        part = self.part(file)
        here = part.stat().st_size if part.exists() else 0
        return max(0, (file.size_bytes or 0) - here)


class FolderStore(Store):
    """A folder below the cache of qwen-edge. Parts are named by digest: what one source began, another continues."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, file: RemoteFile) -> Path:
        """See Store."""
        return self.folder / file.name

    def part(self, file: RemoteFile) -> Path:
        """See Store."""
        return cache_root() / "partial" / f"{file.digest}.part"

    def lock(self, file: RemoteFile) -> Path:
        """See Store."""
        return cache_root() / "partial" / f"{file.digest}.lock"

    def has(self, file: RemoteFile) -> bool:
        """See Store."""
        return self.path(file).is_file()

    def find(self, file: RemoteFile) -> Path | None:
        """See Store."""
        return _checked(self.path(file), file)

    def place(self, part: Path, file: RemoteFile) -> Path:
        """See Store."""
        path = self.path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        _rename(part, path)
        return path


class HuggingFaceStore(Store):
    """The cache of huggingface_hub: blobs by digest, snapshots of links to them, a ref for each branch.

    Source: "Understand caching" in the guides of huggingface_hub.
    """

    def __init__(self, cache: Path, listing: Listing) -> None:
        from huggingface_hub.file_download import repo_folder_name

        if not _COMMIT.fullmatch(listing.revision):
            raise DownloadError(
                f"the hub names {listing.revision!r} as commit of {listing.location}",
                hint="Check HF_ENDPOINT: is that a hub?",
            )
        name = repo_folder_name(repo_id=listing.location, repo_type="model")
        self.folder = cache / name
        self.snapshot = self.folder / "snapshots" / listing.revision
        self._commit = listing.revision
        self._locks = cache / ".locks" / name

    def path(self, file: RemoteFile) -> Path:
        """See Store."""
        return self.snapshot / file.name

    def _blob(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / file.digest

    def part(self, file: RemoteFile) -> Path:
        """See Store."""
        return self._blob(file).with_name(f"{file.digest}.qwen-edge.incomplete")

    def lock(self, file: RemoteFile) -> Path:
        """See Store."""
        return self._locks / f"{file.digest}.lock"  # the one that huggingface_hub holds while it fetches

    def has(self, file: RemoteFile) -> bool:
        """See Store."""
        return self.path(file).is_file() or self._blob(file).is_file()

    def find(self, file: RemoteFile) -> Path | None:
        """See Store."""
        path, blob = self.path(file), self._blob(file)
        if _checked(blob, file):
            self._link(blob, path)
            return path
        if path.is_symlink():
            path.unlink()  # to a blob that is not there, or not this one
        return _checked(path, file)

    def place(self, part: Path, file: RemoteFile) -> Path:
        """See Store."""
        blob, path = self._blob(file), self.path(file)
        _rename(part, blob)
        self._link(blob, path)
        return path

    def _link(self, blob: Path, path: Path) -> None:
        """Make the snapshot's entry for a blob, as huggingface_hub does: the blob itself where links do not work."""
        from huggingface_hub.file_download import are_symlinks_supported

        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() and path.resolve() == blob.resolve():
            return
        path.unlink(missing_ok=True)
        if are_symlinks_supported(self.folder.parent):
            path.symlink_to(os.path.relpath(blob, path.parent))
        else:
            shutil.move(blob, path)

    def set_ref(self, revision: str) -> None:
        """Record that a branch or tag stands for this commit."""
        if revision != self._commit:
            with atomic_path(self.folder / "refs" / revision) as part:
                part.write_text(self._commit, encoding="ascii")


@contextlib.contextmanager
def one_writer(lock: Path, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock that is freed when its process ends, however it ends; says so if that takes waiting."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        say(f"{what} is being fetched by another process; waiting for it")
        file_lock.acquire()
    try:
        yield
    finally:
        file_lock.release()


def settle(part: Path) -> None:
    """Make a checked file old enough for its digest to be remembered at once; a later change shows all the same."""
    stat = part.stat()
    os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns - _AGE_NS))


def _checked(path: Path, file: RemoteFile) -> Path | None:
    if not path.is_file():
        return None
    has_size = file.size_bytes in (None, path.stat().st_size)
    if has_size and (file_digest(path) if file.sha256 else _git_sha1(path)) == file.digest:
        return path
    path.replace(_damaged(path))  # removed when the right one has come
    return None


def _damaged(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


def _git_sha1(path: Path) -> str:
    """Return git's digest of a file's content. Source: "Git Objects" in the Pro Git book."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _rename(part: Path, path: Path) -> None:
    part.chmod(0o666 & ~current_umask())
    part.replace(path)
