"""Which files of a model are on this machine already; nothing is loaded or fetched."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from qwen_edge import paths
from qwen_edge.catalog import CatalogModel, names_of, normalised
from qwen_edge.quant_types import FILE_TYPES

_TYPE_ENDINGS = {normalised(name): name for name in FILE_TYPES}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A file or folder of a model on this machine.

    Attributes:
        path: A GGUF file, or the folder of a checkpoint.
        type_name: Of a GGUF file, as its name tells it; None where the name does not, and of a checkpoint.
        is_checkpoint: Whether it is one.
    """

    path: Path
    type_name: str | None = None
    is_checkpoint: bool = False


def find_local(model: CatalogModel) -> tuple[LocalModel, ...]:
    """Return what of a model is in the folder of this library and in the Hugging Face cache, GGUF files first."""
    files: list[LocalModel] = []
    folders: list[LocalModel] = []
    for file in sorted(paths.models_folder().rglob("*.gguf")):
        if (found := _as_file_of(model, file)) is not None:
            files.append(found)
    for repository in model.repositories:
        cached = hugging_face_cache() / f"models--{repository.replace('/', '--')}" / "snapshots"
        for snapshot in sorted(cached.glob("*/")):
            ggufs = (_as_file_of(model, file) for file in sorted(snapshot.rglob("*.gguf")) if file.is_file())
            files += [found for found in ggufs if found is not None]
            if _is_whole_checkpoint(snapshot):
                folders.append(LocalModel(path=snapshot, is_checkpoint=True))
    return (*files, *folders)


def hugging_face_cache() -> Path:
    """Return the folder that huggingface_hub caches repositories in, without importing it.

    Source: huggingface_hub.constants, HF_HUB_CACHE.
    """
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expandvars(cache)).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{user_cache}/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def _as_file_of(model: CatalogModel, file: Path) -> LocalModel | None:
    """Return the file if its name is one of the model's, with or without a type at its end."""
    name, type_name = normalised(file.stem), None
    for ending, known in _TYPE_ENDINGS.items():
        # Uploaders write both qwen3-0.6b-q8_0 and Qwen3-0.6B.Q8_0.
        if name.endswith((f"-{ending}", f".{ending}")):
            name, type_name = name[: -len(ending) - 1], known
            break
    return LocalModel(path=file, type_name=type_name) if name in names_of(model) else None


def _is_whole_checkpoint(folder: Path) -> bool:
    """Return whether a checkpoint has its config and all its weights: a download may have stopped between shards."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
        return bool(shards) and all((folder / shard).is_file() for shard in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
