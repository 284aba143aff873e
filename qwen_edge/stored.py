"""What qwen-edge keeps on this machine, with what each thing takes of the disk.

::

    CACHE/models/OWNER--NAME/*.gguf           pulled files, each with its manifest; converted ones beside the folders
    CACHE/checkpoints/OWNER--NAME/REVISION/   pulled checkpoints that are not in the cache of Hugging Face
    CACHE/partial/DIGEST.part, DIGEST.lock    downloads in the making
    CACHE/native/                             builds of llama.cpp
    CACHE/prefixes/                           evaluated prompts
    CACHE/manifests/, probe/, device/, tune/  records: where files come from, what runs here and how fast
    CACHE/digests.sqlite                      records: digests
    HF_HUB_CACHE/models--OWNER--NAME/         of those repositories that were pulled, or are in the catalog
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen_edge.catalog import MODELS, CatalogModel, find_model
from qwen_edge.errors import FormatError, ModelNotFoundError, NoFolderError
from qwen_edge.files import is_running
from qwen_edge.hub.hf_settings import cache_folder
from qwen_edge.hub.listing import split_count, type_in_name
from qwen_edge.hub.local import checkpoints_folder, model_path
from qwen_edge.manifest import manifest_path, read_manifest
from qwen_edge.native.builds import builds_folder
from qwen_edge.native.library import library_folder
from qwen_edge.paths import cache_root, models_folder, prefixes_folder, tune_folder

Kind = Literal[
    "model", "checkpoint", "repository", "partial", "native", "prefix-cache", "history", "records", "other"
]
_MODEL_KINDS = ("model", "checkpoint", "repository")
_BLOCK_BYTES = 512  # Source: stat(2), the unit of st_blocks whatever the file system.


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Something that is kept, and goes as a whole.

    Attributes:
        kind: "model" is a GGUF file or an ONNX folder, "checkpoint" one in our folder, "repository" one in the cache of
            Hugging Face; the others are what their names say.
        name: For people; of a model what `qwen-edge rm` and `run` take.
        path: The file or folder.
        size_bytes: On the disk. A file with two names is counted once, under the first.
        types: Types of the GGUF files in it, "HF" for a checkpoint, "onnx" for an ONNX folder.
        model: Its row of the catalog, None for what has none.
        repository: `owner/name` where it was pulled from, None where that is not known.
        extras: What goes along: manifests, logs.
        locks: Held by whoever writes it.
        remove: The argument of `qwen-edge rm` that frees it.
        is_needed: Whether removing it takes away what is in use: the build of llama.cpp that is loaded.
    """

    kind: Kind
    name: str
    path: Path
    size_bytes: int
    remove: str
    types: tuple[str, ...] = ()
    model: CatalogModel | None = None
    repository: str | None = None
    extras: tuple[Path, ...] = ()
    locks: tuple[Path, ...] = ()
    is_needed: bool = False

    @property
    def is_model(self) -> bool:
        """Whether it is something to run or to convert."""
        return self.kind in _MODEL_KINDS


class DiskUsage:
    """Adds up blocks on the disk; what has several names is counted at the first."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()

    def of(self, *paths: Path) -> int:
        """Return the bytes that files and folders take, links themselves and not what they lead to."""
        return sum(self._of(path) for path in paths)

    def _of(self, path: Path) -> int:
        try:
            stat = path.lstat()
        except OSError:  # another process may have removed it
            return 0
        if (stat.st_dev, stat.st_ino) in self._seen:
            return 0
        self._seen.add((stat.st_dev, stat.st_ino))
        size_bytes = getattr(stat, "st_blocks", -(-stat.st_size // _BLOCK_BYTES)) * _BLOCK_BYTES
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                size_bytes += sum(self._of(child) for child in sorted(path.iterdir()))
        return int(size_bytes)


def stored_models(usage: DiskUsage | None = None) -> list[Stored]:
    """Return the models that are here, by name: in our folders, and those in the cache of Hugging Face that we know."""
    usage = usage or DiskUsage()
    try:
        found = [*_model_files(usage), *_checkpoints(usage), *_cached_repositories(usage)]
    except NoFolderError:
        return []
    return sorted(found, key=lambda item: (item.name.lower(), item.types))


def stored_files() -> list[Stored]:
    """Return everything that is kept, models first."""
    usage = DiskUsage()
    found = [*stored_models(usage), *_partials(usage), *_builds(usage)]
    root = cache_root()
    kinds: list[tuple[Kind, str, Path]] = [
        ("prefix-cache", "evaluated prompts", prefixes_folder()),
        ("history", "what was typed in chat", root / "history"),
        ("records", "where files come from", root / "manifests"),
        ("records", "verdicts on the library", root / "probe"),
        ("records", "fastest settings", tune_folder()),
        ("records", "what this machine can do", root / "device"),
        *(
            ("records", f"digests of files ({path.name})", path)
            for path in sorted(root.glob("digests.sqlite*"))
        ),
    ]
    found += [
        Stored(kind=kind, name=name, path=path, size_bytes=usage.of(path), remove=f"--{kind}")
        for kind, name, path in kinds
        if os.path.lexists(path)
    ]
    found += _others(usage, found, root)
    return found


def _model_files(usage: DiskUsage) -> Iterator[Stored]:
    root = models_folder()
    own_rows = {model_path(row): row for row in MODELS.values() if row.file_name}
    folders = [path.parent for path in sorted(root.rglob("model.onnx"))]
    files = [path for path in sorted(root.rglob("*.gguf")) if not path.name.startswith(".")]
    for path in (*folders, *files):
        repository = _repository_of(path, root)
        model = own_rows.get(path) or _row_of(repository)
        type_name = "onnx" if path in folders else type_in_name(path.name)
        base = model.name if model is not None else repository
        is_nameable = base is not None and type_name not in (None, "onnx") and not split_count(path.name)
        name = f"{base}@{type_name}" if is_nameable else str(path)
        extras = [] if path in folders else [manifest_path(path), *_beside(path)]
        yield Stored(
            kind="model",
            name=name,
            path=path,
            size_bytes=usage.of(path, *extras),
            remove=name,
            types=(type_name,) if type_name else (),
            model=model,
            repository=repository,
            extras=tuple(extra for extra in extras if os.path.lexists(extra)),
            locks=(path.with_name(f"{path.name}.lock"), *_locks_of(path)),
        )


def _beside(path: Path) -> list[Path]:
    """Return what fetching leaves beside a file: its lock, and an earlier file that was damaged."""
    return [path.with_name(f"{path.name}{end}") for end in (".lock", ".damaged")]


def _checkpoints(usage: DiskUsage) -> Iterator[Stored]:
    root = checkpoints_folder()
    for path in sorted(root.glob("*/*")):
        repository = _repository_of(path, root)
        if not path.is_dir() or repository is None:
            continue
        model = _row_of(repository)
        name = model.name if model is not None else repository
        yield Stored(
            kind="checkpoint",
            name=name,
            path=path,
            size_bytes=usage.of(path),
            remove=name,
            types=("HF",),
            model=model,
            repository=repository,
            locks=_locks_of(path),
        )


def _cached_repositories(usage: DiskUsage) -> Iterator[Stored]:
    manifests = cache_root() / "manifests" / "huggingface"
    for path in _in_hugging_face_cache("models--*--*"):
        key = path.name.removeprefix("models--")
        repository = key.replace("--", "/", 1)
        model, manifest = _row_of(repository), manifests / key
        files = [file for file in path.glob("snapshots/*/**/*") if file.exists()]
        if not files or (model is None and not manifest.is_dir()):
            continue
        types = {type_in_name(file.name) or "GGUF" for file in files if file.suffix == ".gguf"}
        types |= {"HF" for file in files if file.suffix == ".safetensors"}
        name = model.name if model is not None else repository
        yield Stored(
            kind="repository",
            name=f"{name}@{next(iter(types))}" if len(types - {"HF"}) == 1 and len(types) == 1 else name,
            path=path,
            size_bytes=usage.of(path, manifest),
            remove=repository,
            types=tuple(sorted(types)),
            model=model,
            repository=repository,
            extras=(manifest,) if manifest.is_dir() else (),
            locks=tuple(sorted((path.parent / ".locks" / path.name).glob("*.lock"))),
        )


def _in_hugging_face_cache(pattern: str) -> list[Path]:
    try:
        return sorted(cache_folder().glob(pattern))
    except NoFolderError:
        return []


def _partials(usage: DiskUsage) -> Iterator[Stored]:
    """Yield downloads that were not ended, and what killed processes left half-written."""
    root = cache_root()
    parts = [(path, path.with_suffix(".lock")) for path in sorted((root / "partial").glob("*.part"))]
    for path in _in_hugging_face_cache("models--*/blobs/*.qwen-edge.incomplete"):
        repository = path.parents[1]
        name = path.name.replace(".qwen-edge.incomplete", ".lock")
        parts.append((path, repository.parent / ".locks" / repository.name / name))
    for path, lock in parts:
        yield Stored(
            kind="partial",
            name=f"unfinished download {path.name[:12]}",
            path=path,
            size_bytes=usage.of(path),
            remove="--partial",
            locks=(lock,),
        )
    for path in sorted(root.rglob(".*.part")):
        writer = path.name.split(".")[-3]
        if not writer.isdigit() or not is_running(int(writer)):
            yield Stored(
                kind="partial",
                name=f"left behind {path.name}",
                path=path,
                size_bytes=usage.of(path),
                remove="--partial",
            )


def _builds(usage: DiskUsage) -> Iterator[Stored]:
    root, used = builds_folder(), library_folder()
    locks = tuple(sorted(root.glob("*lock")))
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if path in locks:
            continue
        is_needed = used is not None and used.resolve().is_relative_to(path.resolve())
        what = (
            "log"
            if path.suffix == ".log"
            else "unfinished build"
            if path.name.startswith("building-")
            else "build"
        )
        yield Stored(
            kind="native",
            name=f"{what} {path.name.removeprefix('building-').removesuffix('.log')}",
            path=path,
            size_bytes=usage.of(path),
            remove=str(path) if is_needed else "--native",
            locks=locks,
            is_needed=is_needed,
        )


def _others(usage: DiskUsage, known: Iterable[Stored], root: Path) -> Iterator[Stored]:
    """Yield the files of our folder that nothing above accounts for; empty ones are left out."""
    accounted = {path for item in known for path in (item.path, *item.extras, *item.locks)}
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if here / name not in accounted)
        for path in (here / name for name in sorted(names)):
            size_bytes = 0 if path in accounted else usage.of(path)
            if size_bytes:
                name = path.relative_to(root).as_posix()
                yield Stored(kind="other", name=name, path=path, size_bytes=size_bytes, remove=str(path))


def _repository_of(path: Path, root: Path) -> str | None:
    """Return `owner/name` from the folder OWNER--NAME in which something lies, None where it lies in no such folder."""
    first = path.relative_to(root).parts[0]
    return first.replace("--", "/", 1) if "--" in first and (root / first).is_dir() else None


def _row_of(repository: str | None) -> CatalogModel | None:
    if repository is None:
        return None
    try:
        row = find_model(repository)
    except ModelNotFoundError:
        return None
    return row if repository.lower() in {name.lower() for name in row.repositories} else None


def _locks_of(path: Path) -> tuple[Path, ...]:
    """Return the locks of the downloads that a file or checkpoint is made of; of an unfinished one all."""
    partial = cache_root() / "partial"
    with contextlib.suppress(FormatError):
        if manifest := read_manifest(path):
            records = [record for record in (manifest.artefact, *manifest.inputs) if record is not None]
            return tuple(partial / f"{record.sha256}.lock" for record in records)
    return tuple(sorted(partial.glob("*.lock"))) if path.is_dir() else ()
