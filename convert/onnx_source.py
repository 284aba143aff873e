"""An exported F32 or F16 folder as a checkpoint: what can be exported again with fewer bits.

The data file holds matrices that take the same input one below the other; each comes out as its rows, under the name
that it has in a checkpoint. config.json and the tokenizer's files lie in the folder.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen_edge.convert.checkpoint import Checkpoint, open_checkpoint
from qwen_edge.convert.json_files import read_object, shorten
from qwen_edge.convert.onnx_data import DATA_NAME
from qwen_edge.convert.onnx_weights import LAYER_MATRICES, LAYER_NORMS
from qwen_edge.convert.qwen import QwenConfig, expected_tensors, parse_config
from qwen_edge.convert.safetensors_file import TensorEntry
from qwen_edge.convert.tensor_source import TensorSource
from qwen_edge.engines.onnx_folder import FACTS_KEY, GRAPH_NAME
from qwen_edge.errors import CheckpointError, MissingExtraError, UnsupportedError

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "convert", "reading an ONNX model") from error

_DTYPES = {onnx.TensorProto.FLOAT: ("F32", 4), onnx.TensorProto.FLOAT16: ("F16", 2)}
_AGAIN = "Export the checkpoint again: qwen-edge convert CHECKPOINT --to onnx -o FOLDER"


def is_onnx_folder(path: Path) -> bool:
    """Tell whether a path is a folder with an ONNX model in it, and no checkpoint."""
    return (path / GRAPH_NAME).is_file() and not any(path.glob("*.safetensors"))


def open_source(source: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint, see open_checkpoint(), or an exported folder."""
    folder = Path(source)
    return open_onnx_folder(folder) if is_onnx_folder(folder) else open_checkpoint(source)


def open_onnx_folder(folder: Path) -> Checkpoint:
    """Open an exported folder; of its weights nothing is read.

    Raises:
        UnsupportedError: It was not exported by this program, or its weights are quantized.
        CheckpointError: It is damaged, or its files contradict each other.
        OSError: A file cannot be read.
    """
    folder = folder.absolute()
    path = folder / GRAPH_NAME
    model = _read_graph(path)
    facts = _read_facts(model, path)
    quantized = {facts.get(role) for role in ("weights", "head", "embedding")} - {"f32", "f16"}
    if quantized:
        raise UnsupportedError(
            f"{folder} holds {' and '.join(sorted(map(str, quantized)))} weights; their rounding cannot be undone",
            hint="Start from the checkpoint, or from a folder exported with --weights f32 or f16.",
        )
    values = read_object(folder / "config.json")
    config = parse_config(values, str(folder / "config.json"))
    entries = {entry.name: entry for entry in _stored(model, folder / DATA_NAME)}
    shapes = {expected.name: expected.shape for expected in expected_tensors(config)}
    tensors: dict[str, TensorSource] = {}
    embedding = "embed_tokens" if "embed_tokens.weight" in entries else "lm_head"
    for name, place, first_row in _places(config, shapes, embedding):
        if place not in entries:
            raise CheckpointError(f"{path} has no tensor {place!r} in {DATA_NAME}", hint=_AGAIN)
        tensors[name] = _rows(name, entries[place], first_row, shapes[name])
    return Checkpoint(folder=folder, config=values, tensors=tensors)


def _read_graph(path: Path) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise CheckpointError(f"{path} is not an ONNX model, or is cut off", hint=_AGAIN) from error


def _read_facts(model: Any, path: Path) -> dict[str, Any]:
    text = next((each.value for each in model.metadata_props if each.key == FACTS_KEY), None)
    if text is None:
        raise UnsupportedError(
            f"{path} was not exported by qwen-edge: which of its tensors is which cannot be told",
            hint="Start from the checkpoint: qwen-edge convert CHECKPOINT --to onnx --weights int4 -o FOLDER",
        )
    try:
        facts = json.loads(text)
    except json.JSONDecodeError:
        facts = None
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path}: the metadata {FACTS_KEY!r} is {shorten(text)}, expected an object")
    return facts


def _stored(model: Any, data: Path) -> Iterator[TensorEntry]:
    """Yield the initializers that lie in the data file."""
    file_bytes = data.stat().st_size
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL or tensor.data_type not in _DTYPES:
            continue
        where = {each.key: each.value for each in tensor.external_data}
        dtype, item_bytes = _DTYPES[tensor.data_type]
        offset, n_bytes = (_whole_number(where.get(key, "")) for key in ("offset", "length"))
        is_whole = where.get("location") == DATA_NAME and n_bytes == math.prod(tensor.dims) * item_bytes
        if not is_whole or offset < 0 or offset + n_bytes > file_bytes:
            raise CheckpointError(
                f"{data.parent / GRAPH_NAME} places {tensor.name!r} at {shorten(where)}; {DATA_NAME} has {file_bytes} bytes",
                hint=_AGAIN,
            )
        name = tensor.name.removesuffix(".f16")
        yield TensorEntry(name, dtype, tuple(tensor.dims), data, offset, n_bytes)


def _whole_number(text: str) -> int:
    """Return a number of at most 18 digits, -1 for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else -1


def _places(
    config: QwenConfig, shapes: Mapping[str, tuple[int, ...]], embedding: str
) -> Iterator[tuple[str, str, int]]:
    """Yield (name in the checkpoint without "model.", initializer, its first row in there)."""
    owners = {"norm": ("norm", 0), "lm_head": ("lm_head", 0), "embed_tokens": (embedding, 0)}
    for layer in range(config.n_layers):
        prefix = f"layers.{layer}."
        owners |= {prefix + name: (prefix + path, 0) for path, name in LAYER_NORMS.items()}
        for path, names in LAYER_MATRICES.items():
            first_row = 0
            for name in names:
                owners[prefix + name] = (prefix + path, first_row)
                first_row += shapes[f"{prefix}{name}.weight"][0]
    for name in shapes:
        stem, _, suffix = name.rpartition(".")
        place, first_row = owners[stem]
        yield name, f"{place}.{suffix}", first_row


def _rows(name: str, entry: TensorEntry, first_row: int, shape: tuple[int, ...]) -> TensorEntry:
    """Return some rows of a tensor under a name of their own."""
    row_bytes = entry.n_bytes // max(1, entry.shape[0])
    if entry.shape[1:] != shape[1:] or first_row + shape[0] > entry.shape[0]:
        raise CheckpointError(
            f"{entry.path.parent}: {entry.name!r} has shape {list(entry.shape)}, "
            f"where config.json asks for {list(shape)} from row {first_row}",
            hint=_AGAIN,
        )
    offset = entry.offset + first_row * row_bytes
    return TensorEntry(name, entry.dtype, shape, entry.path, offset, shape[0] * row_bytes)
