"""Make tensor_types.json: which type llama.cpp's quantizer gives each matrix, for every file type and several shapes.

    python -m tests.golden.make_tensor_types

The quantizer's own dry run tells, on files without weights. Types that need an importance matrix are asked for with one,
since the quantizer mixes some of them otherwise then; others without.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwen_edge.catalog import MODELS, Shape
from qwen_edge.errors import NativeError
from qwen_edge.native import library, quantizer
from qwen_edge.quant_types import FILE_TYPES, FileType
from qwen_edge.tensor_plan import PlannedTensor
from qwen_edge.trial_model import write_trial_outline

GOLDEN = Path(__file__).with_name("tensor_types.json")
REFUSED = "refused"

_CATALOG = ("qwen2.5-0.5b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b")
_SMALL = {
    "n_layers": 17,
    "hidden_size": 256,
    "ffn_size": 512,
    "n_heads": 8,
    "n_kv_heads": 2,
    "head_dim": 32,
    "vocab_size": 64,
    "has_qk_norm": True,
}
# What the catalog has not: an embedding beside the head, rows that divide by 32 and not by 128, and by nothing.
SHAPES: dict[str, Shape] = {
    **{name: shape for name in _CATALOG if (shape := MODELS[name].shape) is not None},
    "untied": Shape(**{**_SMALL, "is_tied": False}),
    "untied, a key for two queries": Shape(**{**_SMALL, "is_tied": False, "n_kv_heads": 4}),
    "narrow": Shape(**{**_SMALL, "is_tied": True, "hidden_size": 160, "ffn_size": 288}),
    "narrow, untied": Shape(**{**_SMALL, "is_tied": False, "hidden_size": 160, "ffn_size": 256}),
    "odd": Shape(
        **{**_SMALL, "is_tied": True, "hidden_size": 40, "ffn_size": 56, "head_dim": 20, "n_heads": 2}
    ),
}


def in_short(tensors: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the types by what a matrix does, layer after layer: {"attn_v": "3 Q6_K, 2 Q4_K"}.

    Args:
        tensors: Name and type of the matrices.
    """
    rows: dict[str, list[tuple[int, str]]] = {}
    for name, type_name in tensors:
        found = re.match(r"(?:blk\.(\d+)\.)?(\w+)\.weight$", name)
        assert found is not None, name
        rows.setdefault(found[2], []).append((int(found[1] or 0), type_name))
    return {
        role: ", ".join(
            f"{len(list(run))} {type_name}"
            for type_name, run in itertools.groupby(kind for _, kind in sorted(rows[role]))
        )
        for role in sorted(rows)
    }


def planned_in_short(tensors: Iterable[PlannedTensor]) -> dict[str, str]:
    """Return the same of a plan of ours."""
    return in_short((tensor.name, tensor.type_name) for tensor in tensors if not tensor.is_vector)


def write_outline(folder: Path, shape: Shape) -> Path:
    """Write a BF16 file of a shape without weights."""
    path = folder / "outline.gguf"
    write_trial_outline(path, shape, "BF16", architecture="qwen3" if shape.has_qk_norm else "qwen2")
    return path


def quantizer_types(source: Path, kind: FileType) -> dict[str, str] | str:
    """Return what the quantizer would make of a file, in short; REFUSED where it would not."""
    events: list[dict[str, Any]] = []
    reader = quantizer._LogReader(events.append)
    api = library.api()
    callback = api.llama_log_callback(lambda level, text, _: reader.feed(text.decode()))
    api.llama_log_set(callback, ctypes.c_void_p(0))
    params = api.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.dry_run, params.allow_requantize = kind.llama_id, 1, True, True
    entry = api.llama_model_imatrix_data(b"output.weight", (ctypes.c_float * 1)(1.0), 1)
    matrix = (api.llama_model_imatrix_data * 2)(entry)
    if kind.needs_imatrix:
        params.imatrix = ctypes.cast(matrix, type(params.imatrix))
    code = api.llama_model_quantize(str(source).encode(), b"", ctypes.byref(params))
    api.llama_log_set(library._log_callback(api), ctypes.c_void_p(0))
    if code != 0:
        if "no tensor type fallback" in reader.failure:
            return REFUSED
        raise NativeError(reader.failure)
    return in_short(
        (event["tensor"], event["type"])
        for event in events
        if "tensor" in event and event["tensor"].endswith("weight") and "norm" not in event["tensor"]
    )


def main() -> None:
    document = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            source = write_outline(Path(folder), shape)
            document[name] = {kind.name: quantizer_types(source, kind) for kind in FILE_TYPES.values()}
    GOLDEN.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
