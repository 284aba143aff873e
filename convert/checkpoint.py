"""A checkpoint on disk: which files it has, what its tensors are called and where they lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.convert.json_files import read_object, shorten
from qwen_edge.convert.safetensors_file import TensorEntry, read_header
from qwen_edge.convert.tensor_source import TensorSource
from qwen_edge.errors import CheckpointError, ModelNotFoundError, UnsupportedError
from qwen_edge.hub import origin_of

INDEX_NAME = "model.safetensors.index.json"

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_FETCH_ALL = "Fetch the checkpoint again with all its files."


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Only headers and config.json have been read.

    Attributes:
        folder: Where its files lie, absolute.
        config: config.json as it stands there.
        tensors: Each tensor by its name.
    """

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorSource]

    @property
    def name(self) -> str:
        """The model's name, as its folder gives it."""
        return checkpoint_name(self.folder)

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files."""
        return sorted({entry.path for entry in self.tensors.values()})


def open_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint folder, or a single safetensors file with its config.json beside it.

    Raises:
        ModelNotFoundError: There is no such path.
        UnsupportedError: The weights are pickles, or GGUF already.
        CheckpointError: Files are missing, damaged or contradict each other.
        OSError: A file cannot be read.
    """
    # Absolute, so that "." has a name; links stay, for in a hub's cache they lead to files named by digest.
    path = Path(os.path.abspath(source))  # noqa: PTH100
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise UnsupportedError(
                f"{path} is an adapter (PEFT), not a checkpoint",
                hint=f"Merge it: qwen-edge convert CHECKPOINT --adapter {path}\n"
                f"  Or use it beside its model: qwen-edge convert {path} --base CHECKPOINT -o adapter.gguf",
            )
        tensors = _open_folder(path)
        folder = path
    elif path.is_file():
        tensors = _open_single_file(path)
        folder = path.parent
    else:
        raise ModelNotFoundError(
            f"there is no checkpoint at {os.fspath(source)!r}",
            hint="Give a folder with config.json, tokenizer.json and *.safetensors. "
            "A model of the hub is fetched with: hf download NAME --local-dir FOLDER",
        )
    return Checkpoint(folder=folder, config=read_object(folder / "config.json"), tensors=tensors)


def checkpoint_name(source: str | os.PathLike[str]) -> str:
    """Return the name of the model at a path: that of the repository it was pulled from, else of the folder."""
    path = Path(os.path.abspath(source))  # noqa: PTH100
    folder = path.parent if path.is_file() else path
    location = origin_of(folder).location
    return location.split("/")[-1] or folder.name or "model"


def _open_single_file(path: Path) -> dict[str, TensorEntry]:
    if path.suffix == ".gguf":
        raise UnsupportedError(
            f"{path} is a GGUF file already",
            hint=f"Make it smaller with: qwen-edge quantize {path} --type Q4_K_M",
        )
    if path.suffix in _PICKLE_SUFFIXES:
        raise _pickle_error(path)
    if path.suffix != ".safetensors":
        raise UnsupportedError(f"{path} is neither a folder nor a .safetensors file")
    return _merge([path])


def _open_folder(folder: Path) -> dict[str, TensorEntry]:
    if (folder / INDEX_NAME).is_file():
        return _open_indexed(folder)
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if files:
        return _merge(files)
    pickles = sorted(path for path in folder.iterdir() if path.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise _pickle_error(pickles[0])
    raise CheckpointError(
        f"{folder} holds no .safetensors file", hint="Give the folder that holds config.json and the weights."
    )


def _open_indexed(folder: Path) -> dict[str, TensorEntry]:
    """Open the shards that the index names and check that both tell the same."""
    index_path = folder / INDEX_NAME
    shard_of = _read_weight_map(index_path)
    shards = [folder / name for name in sorted(set(shard_of.values()))]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise CheckpointError(
            f"{index_path} names shards that are missing from {folder}: {', '.join(absent)}", hint=_FETCH_ALL
        )
    tensors = _merge(shards)
    for name, shard in shard_of.items():
        if name not in tensors or tensors[name].path.name != shard:
            found = (
                f"it is in {tensors[name].path.name}" if name in tensors else "it is in none of the shards"
            )
            raise CheckpointError(f"{index_path} places {name!r} in {shard}, but {found}", hint=_FETCH_ALL)
    for name, entry in tensors.items():
        if name not in shard_of:
            raise CheckpointError(
                f"{entry.path} holds {name!r}, which {INDEX_NAME} does not list", hint=_FETCH_ALL
            )
    return tensors


def _read_weight_map(index_path: Path) -> dict[str, str]:
    """Return tensor name -> shard file name."""
    weight_map = read_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index_path}: 'weight_map' is {shorten(weight_map)}, expected an object of tensor names and files",
            hint=_FETCH_ALL,
        )
    for name, shard in weight_map.items():
        # A name with a folder in it could lead out of the checkpoint.
        if (
            not isinstance(shard, str)
            or not shard.endswith(".safetensors")
            or "/" in shard
            or not _is_file_name(shard)
        ):
            raise CheckpointError(
                f"{index_path} places {name!r} in {shorten(shard)}, expected the name of a .safetensors file beside it",
                hint=_FETCH_ALL,
            )
    return weight_map


def _is_file_name(name: str) -> bool:
    """Tell whether the operating system can take `name` as that of a file in a given folder."""
    return "\0" not in name and "\\" not in name and name.isprintable() and len(name.encode()) <= 255


def _merge(files: list[Path]) -> dict[str, TensorEntry]:
    """Read the headers of all files into one table."""
    tensors: dict[str, TensorEntry] = {}
    for path in files:
        for entry in read_header(path):
            if entry.name in tensors:
                raise CheckpointError(
                    f"{entry.name!r} is in two files: {tensors[entry.name].path} and {path}",
                    hint="Remove the files that do not belong to this checkpoint.",
                )
            tensors[entry.name] = entry
    return tensors


def _pickle_error(path: Path) -> UnsupportedError:
    return UnsupportedError(
        f"{path} is a PyTorch pickle: opening one can run any code, so only .safetensors is read",
        hint="Take the checkpoint's safetensors version; most hubs offer one, some as a branch. If there is none, PyTorch "
        "can make it without running code: safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE).",
    )
