"""The checkpoint whose weights are exactly those that an export stores: what a graph has to compute, rounding included."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from qwen_edge.convert import OnnxPrecision
from qwen_edge.convert.checkpoint import open_checkpoint
from qwen_edge.convert.onnx_blocks import dequantize_rows, quantize_rows
from qwen_edge.convert.rows import read_tensor


def write_stored(source: Path, target: Path, precision: OnnxPrecision) -> Path:
    """Write it with an untied head, since head and embedding may be rounded differently; "nearest" only."""
    tensors = {}
    for name, entry in open_checkpoint(source).tensors.items():
        values = read_tensor(entry)
        if "embed_tokens" in name:
            tensors["model.embed_tokens.weight"] = _stored(values, precision, "embedding")
            tensors.setdefault("lm_head.weight", _stored(values, precision, "head"))
        elif name == "lm_head.weight":
            tensors[name] = _stored(values, precision, "head")
        else:
            tensors[name] = values if values.ndim == 1 else _stored(values, precision, "layers")
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return target


def _stored(values: NDArray[np.float32], precision: OnnxPrecision, role: str) -> NDArray[np.float32]:
    kind = precision.type_of(role)  # type: ignore[arg-type]
    form = precision.blocks_of(kind)
    if form is not None:
        return np.ascontiguousarray(dequantize_rows(quantize_rows(values, form), form, values.shape[1]))
    return values.astype(np.float16).astype(np.float32) if kind == "f16" else values
