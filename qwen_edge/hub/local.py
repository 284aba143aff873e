"""What is on this machine already; nothing here touches the network."""

from __future__ import annotations

import difflib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.bundle.record import bundled_model
from qwen_edge.catalog import CatalogModel, ModelName, parse_model_name
from qwen_edge.errors import ConfigError, ModelNotFoundError, NoFolderError
from qwen_edge.hub.hf_settings import cache_folder
from qwen_edge.hub.listing import by_type, preferred, split_count, type_in_name
from qwen_edge.paths import cache_root, models_folder

_INDEX = "model.safetensors.index.json"


def repository_folder(root: Path, repository: str) -> Path:
    """Return the folder of a repository below one of ours."""
    return root / repository.replace("/", "--")


def checkpoints_folder() -> Path:
    """Return the folder of checkpoints that are not in the cache of Hugging Face."""
    return cache_root() / "checkpoints"


def model_path(model: CatalogModel) -> Path:
    """Return where the converted file of a model is kept, whether it is there or not."""
    assert model.file_name, f"Bug: {model.name} has no converted file"
    return models_folder() / model.file_name


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """Return what a name or path means to load: a GGUF file, or a path as it is (of an ONNX folder too). Of a bundle it
    is the model in it.

    Without a type the one that most people run is taken; where there is a choice, a warning says which.

    Args:
        name_or_path: A file, there or not; a model's name or a repository, with or without @TYPE.

    Raises:
        ModelNotFoundError: No such name, or no file of it is here.
        FormatError: It is a bundle that is damaged.
    """
    text = os.fspath(name_or_path)
    name = parse_model_name(text)
    if name.path is not None:
        return bundled_model(name.path)
    found: dict[str, Path] = {}
    untyped: list[Path] = []
    for files in _gguf_files(name):
        paths = {path.as_posix(): path for path in files if not split_count(path.name)}
        typed = by_type(paths)
        for kind, key in typed.items():
            found.setdefault(kind, paths[key])
        untyped += paths.values() if not typed else ()
    wanted = name.type_name or preferred(found)
    if wanted is not None and wanted in found:
        if name.type_name is None and len(found) > 1:
            warnings.warn(
                f"{text} is here as {', '.join(sorted(found))}; taking {wanted}. Name it with {text}@{wanted}",
                stacklevel=2,
            )
        return found[wanted]
    if wanted is None and len(untyped) == 1:
        return untyped[0]
    title = name.model.title if name.model is not None else str(name.hub_id)
    here = f" Here: {', '.join(sorted(found))}." if found else ""
    raise ModelNotFoundError(
        f"{title}{f' as {wanted}' if wanted else ''} is not on this machine yet",
        hint=f"{_near_path(text)}Fetch it with: qwen-edge pull {pull_argument(name)}{here}",
    )


def pull_argument(name: ModelName) -> str:
    """Return the argument of `qwen-edge pull` that fetches a file to run."""
    model = name.model
    if model is None:
        return f"{name.hub_id}@{name.type_name}" if name.type_name else str(name.hub_id)
    wanted = name.type_name or type_in_name(model.file_name)
    if wanted is None:
        wanted = model.published.type_name if model.published is not None else "Q8_0"
    return f"{model.name}@{wanted}"


def locate_checkpoint(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the folder of the checkpoint that a name or path means.

    Args:
        name_or_path: A folder or file, there or not; a model's name or a repository.

    Raises:
        ModelNotFoundError: No such name, or its checkpoint is not here, or not all of it.
        ConfigError: A type is named: a checkpoint has none.
    """
    text = os.fspath(name_or_path)
    name = parse_model_name(text)
    if name.path is not None:
        return name.path
    base = name.model.name if name.model is not None else str(name.hub_id)
    if name.type_name is not None:
        raise ConfigError(f"{text} names a type, and a checkpoint has none", hint=f"Name it as {base}.")
    for folder in _checkpoint_folders(name):
        if _is_whole(folder):
            return folder
    title = name.model.title if name.model is not None else base
    raise ModelNotFoundError(
        f"the checkpoint of {title} is not on this machine yet",
        hint=_near_path(text) + f"Fetch it with: qwen-edge pull {base}",
    )


def _near_path(text: str) -> str:
    """Return a question where `folder/name` may be a path with a typing error, else ""."""
    folder = Path(text).parent
    if not folder.name or not folder.is_dir():
        return ""
    near = difflib.get_close_matches(Path(text).name, [path.name for path in folder.iterdir()], n=1)
    return f"Did you mean the path {folder / near[0]}? " if near else ""


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
    """Return what of a model has been fetched: GGUF files first, then the newest whole checkpoint."""
    name = ModelName(model=model)
    try:
        files = [
            LocalModel(path=path, type_name=type_in_name(path.name))
            for group in _gguf_files(name)
            for path in group
            if path.is_file()
        ]
        folders = [
            LocalModel(path=folder, is_checkpoint=True)
            for folder in _checkpoint_folders(name)
            if _is_whole(folder)
        ]
    except NoFolderError:
        return ()
    return (*files, *folders[:1])


def _gguf_files(name: ModelName) -> Iterator[list[Path]]:
    """Yield the files of a model, those to be preferred first."""
    model = name.model
    if model is not None and model.wheels is not None and model_path(model).is_file():
        yield [model_path(model)]
    asked = name.hub_id
    if asked is not None and (model is None or asked not in (model.hub_id, model.modelscope_id)):
        repositories: tuple[str | None, ...] = (asked,)
    else:
        repositories = (model.gguf_hub_id, model.gguf_modelscope_id) if model is not None else ()
    for repository in dict.fromkeys(filter(None, repositories)):
        for folder in (repository_folder(models_folder(), repository), *_snapshots(repository)):
            yield sorted(folder.rglob("*.gguf"))


def _checkpoint_folders(name: ModelName) -> Iterator[Path]:
    if name.hub_id is not None:
        repositories: tuple[str | None, ...] = (name.hub_id,)
    else:
        repositories = (name.model.hub_id, name.model.modelscope_id) if name.model is not None else ()
    from qwen_edge.manifest import manifest_path

    for repository in dict.fromkeys(filter(None, repositories)):
        yield from _snapshots(repository)
        folder = repository_folder(checkpoints_folder(), repository)
        # The manifest is written last, and removed before anything changes.
        yield from (path for path in _newest_first(folder) if manifest_path(path).is_file())


def _snapshots(repository: str) -> Iterator[Path]:
    """Yield a repository's snapshots in the cache of Hugging Face, that of the default branch first."""
    # Source: "Understand caching" in the guides of huggingface_hub; its own function for the name loads its client.
    try:
        folder = cache_folder() / f"models--{repository.replace('/', '--')}"
    except NoFolderError:
        return
    ref = folder / "refs" / "main"
    main = folder / "snapshots" / ref.read_text(encoding="ascii").strip() if ref.is_file() else None
    if main is not None and main.is_dir():
        yield main
    yield from (path for path in _newest_first(folder / "snapshots") if path != main)


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda path: (-path.stat().st_mtime_ns, path.name))


def _is_whole(folder: Path) -> bool:
    """Return whether a checkpoint has a configuration and all its weights."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / _INDEX
    if not index.is_file():
        return any(path.is_file() for path in folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(names) and all((folder / str(name)).is_file() for name in names)
