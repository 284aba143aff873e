"""Where a file or folder on this machine was published, as far as it tells."""

from __future__ import annotations

from pathlib import Path

from qwen_edge.errors import FormatError
from qwen_edge.hub.local import repository_folder
from qwen_edge.manifest import Manifest, Origin, read_manifest
from qwen_edge.paths import cache_root

LOCAL = Origin(kind="local")


def origin_of(path: Path) -> Origin:
    """Return where a checkpoint or GGUF file comes from.

    Known from the manifest beside it, and for the cache of Hugging Face from its place there. What has another
    length than its manifest says counts as local.

    Args:
        path: A file, or the folder of a checkpoint.

    Raises:
        OSError: It cannot be read.
    """
    manifest = _manifest_of(path)
    if manifest is not None:
        return manifest.origin
    found = cached_repository(path)
    return Origin(kind="huggingface", location=found[0], revision=found[1]) if found is not None else LOCAL


def cached_repository(path: Path) -> tuple[str, str] | None:
    """Return repository and commit of a file or snapshot in the cache of Hugging Face, None for what is elsewhere.

    Source: "Understand caching" in the guides of huggingface_hub: models--OWNER--NAME/snapshots/COMMIT.
    """
    folder = path if path.is_dir() else path.parent
    for place in (folder, *folder.parents):
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
            return place.parent.parent.name.removeprefix("models--").replace("--", "/", 1), place.name
    return None


def pulled_manifest(repository: str, commit: str) -> Path:
    """Return the folder of the manifests of what was pulled into the cache of Hugging Face."""
    return repository_folder(cache_root() / "manifests" / "huggingface", repository) / commit


def _manifest_of(path: Path) -> Manifest | None:
    """Return a manifest that still describes what is at a path."""
    found = cached_repository(path)
    places = [path]
    if found is not None:
        folder = pulled_manifest(*found)
        places.append(folder if path.is_dir() else folder / path.name)
    for place in places:
        try:
            manifest = read_manifest(place)
        except FormatError:
            continue
        if manifest is not None and _still_describes(manifest, path):
            return manifest
    return None


def _still_describes(manifest: Manifest, path: Path) -> bool:
    """Tell by the lengths, so that nothing is read."""
    described = {path: manifest.artefact} if manifest.artefact else {}
    described |= {path / record.name: record for record in manifest.inputs} if path.is_dir() else {}
    return bool(described) and all(
        file.is_file() and file.stat().st_size == record.size_bytes for file, record in described.items()
    )
