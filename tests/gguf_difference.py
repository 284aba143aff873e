"""Two GGUF files compared: tensors bit by bit, metadata key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def compare_files(ours: Path, theirs: Path) -> dict[str, Any]:
    """Return how many tensors and keys are equal, and each that is not."""
    left, right = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    tensors = _compare(
        {tensor.name: tensor for tensor in left.tensors},
        {tensor.name: tensor for tensor in right.tensors},
        _tensor_diff,
    )
    # The header's own counts follow from the rest.
    keys = _compare(
        {key: field for key, field in left.fields.items() if not key.startswith("GGUF.")},
        {key: field for key, field in right.fields.items() if not key.startswith("GGUF.")},
        _field_diff,
    )
    return {
        "tensors_equal": tensors["equal"],
        "tensor_differences": tensors["differences"],
        "keys_equal": keys["equal"],
        "key_differences": keys["differences"],
        "same_bytes": ours.stat().st_size == theirs.stat().st_size and _same_bytes(ours, theirs),
    }


def _compare(left: dict[str, Any], right: dict[str, Any], diff: Any) -> dict[str, Any]:
    differences: dict[str, str] = {}
    for name in sorted(left.keys() | right.keys()):
        if name not in right:
            differences[name] = "only in ours"
        elif name not in left:
            differences[name] = "only in llama.cpp's"
        elif found := diff(left[name], right[name]):
            differences[name] = found
    return {
        "equal": len(left.keys() & right.keys()) - sum("only" not in text for text in differences.values()),
        "differences": differences,
    }


def _tensor_diff(left: Any, right: Any) -> str | None:
    if left.tensor_type != right.tensor_type or list(left.shape) != list(right.shape):
        return f"{left.tensor_type.name} {list(left.shape)} | {right.tensor_type.name} {list(right.shape)}"
    n_bytes = int(np.count_nonzero(left.data.view(np.uint8) != right.data.view(np.uint8)))
    return f"{n_bytes} bytes differ" if n_bytes else None


def _field_diff(left: Any, right: Any) -> str | None:
    if left.types != right.types:
        return f"type {left.types} | {right.types}"
    ours, theirs = left.contents(), right.contents()
    return None if ours == theirs else f"{str(ours)[:200]} | {str(theirs)[:200]}"


def _same_bytes(ours: Path, theirs: Path) -> bool:
    with ours.open("rb") as left, theirs.open("rb") as right:
        while piece := left.read(1 << 20):
            if piece != right.read(1 << 20):
                return False
    return True
