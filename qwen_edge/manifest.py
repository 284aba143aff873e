"""The record beside a file: what it was made from, by what, with which settings. Schema "qwen-edge/manifest/1".

It holds no time and no path of this machine, so that the same inputs give the same manifest, byte by byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from qwen_edge import __version__
from qwen_edge.digests import file_digest
from qwen_edge.errors import FormatError
from qwen_edge.files import atomic_path

SCHEMA = "qwen-edge/manifest/1"
_SUFFIX = ".manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file.

    Attributes:
        name: Relative to its folder, with forward slashes.
        size_bytes: Its length.
        sha256: Its digest.
    """

    name: str
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, folder: Path | None = None) -> FileRecord:
        """Describe a file on disk; its name is relative to `folder`, where one is given.

        Raises:
            OSError: It cannot be read.
        """
        name = path.relative_to(folder).as_posix() if folder is not None else path.name
        return cls(name=name, size_bytes=path.stat().st_size, sha256=file_digest(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where files were published.

    Attributes:
        kind: "huggingface", "modelscope", "wheels", "url" or "local".
        location: Repository, packages or URL; "" for files that were already here.
        revision: Commit of a repository, "" where there is none.
        licence: As the publisher states it, "" where it is not known.
    """

    kind: str
    location: str = ""
    revision: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a file is and how it came to be.

    Attributes:
        action: "pull", "convert" or "quantize".
        artefact: The file described; for a pulled folder its files are `inputs`, and this is None.
        origin: Where the inputs come from.
        inputs: The files it was made from, sorted by name.
        settings: All that decides the result besides the inputs, JSON-ready.
        tools: Package -> version of what took part.
    """

    action: str
    artefact: FileRecord | None
    origin: Origin
    inputs: tuple[FileRecord, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the document; equal manifests give equal text."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, sort_keys=True) + "\n"


def tool_versions(*packages: str) -> dict[str, str]:
    """Return the version of this project and of installed packages, "absent" for one that is not installed."""
    versions = {"qwen-edge": __version__}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def manifest_path(artefact: str | os.PathLike[str]) -> Path:
    """Return where the manifest of a file stands: NAME.manifest.json beside it, in a folder manifest.json."""
    path = Path(artefact)
    return path / _SUFFIX[1:] if path.is_dir() else path.with_name(path.name + _SUFFIX)


def write_manifest(artefact: str | os.PathLike[str], manifest: Manifest) -> Path:
    """Write the manifest beside its file and return its path.

    Raises:
        OSError: It cannot be written.
    """
    target = manifest_path(artefact)
    with atomic_path(target) as part:
        part.write_text(manifest.to_json(), encoding="utf-8")
    return target


def read_manifest(artefact: str | os.PathLike[str]) -> Manifest | None:
    """Read the manifest beside a file or in a folder; None where there is none.

    Raises:
        FormatError: It is not as write_manifest() makes it.
        OSError: It cannot be read.
    """
    path = manifest_path(artefact)
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r}, expected {SCHEMA!r}")
        artefact_data = data["artefact"]
        if not isinstance(data["inputs"], list) or not isinstance(data["settings"], dict):
            raise TypeError("inputs are no list, or settings no object")
        return Manifest(
            action=_text(data["action"]),
            artefact=None if artefact_data is None else _record(artefact_data),
            origin=Origin(**{key: _text(value) for key, value in data["origin"].items()}),
            inputs=tuple(_record(item) for item in data["inputs"]),
            settings=data["settings"],
            tools={str(name): _text(version) for name, version in data["tools"].items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{path} is no manifest: {type(error).__name__}: {error}",
            hint="Remove it; the file beside it works without.",
        ) from error


def records_of(files: Iterable[Path], folder: Path) -> tuple[FileRecord, ...]:
    """Describe files of a folder, sorted by name.

    Raises:
        OSError: One cannot be read.
    """
    return tuple(sorted((FileRecord.of(path, folder) for path in files), key=lambda record: record.name))


def _record(data: Mapping[str, Any]) -> FileRecord:
    size_bytes = data["size_bytes"]
    if not isinstance(size_bytes, int):
        raise TypeError(f"size_bytes is {size_bytes!r}, expected a number of bytes")
    return FileRecord(name=_text(data["name"]), size_bytes=size_bytes, sha256=_text(data["sha256"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} stands where text is expected")
    return value
