"""The checkpoints whose logits in transformers are kept in reference_logits.npz: random weights, told by seed and name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import synthetic

N_TOKENS = 48
# Large enough that attention is not uniform and logits differ by several units.
_STD = 0.2
# Not of 32 columns: llama.cpp's AMX kernels compute nonsense where a row is a single block.
_SHAPE = replace(synthetic.TINY, hidden=64, ffn=96)


def _write(folder: Path, shape: synthetic.Shape, **config: Any) -> Path:
    synthetic.write_checkpoint(folder, shape, dtype="F32", std=_STD)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def _yarn(folder: Path, **changes: Any) -> Path:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 4.0}
    return _write(folder, _SHAPE, rope_theta=10000.0, rope_scaling=scaling | changes)


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "qwen3": lambda folder: _write(folder, _SHAPE),
    "qwen3-untied": lambda folder: _write(folder, replace(_SHAPE, is_tied=False)),
    "qwen3-heads": lambda folder: _write(folder, replace(_SHAPE, heads=6, kv_heads=2, layers=3)),
    "qwen2-biased": lambda folder: _write(folder, synthetic.as_qwen2(_SHAPE)),
    "qwen3-linear": lambda folder: _write(
        folder, _SHAPE, rope_scaling={"rope_type": "linear", "factor": 2.0}
    ),
    "qwen3-yarn": _yarn,
    "qwen3-yarn-attention": lambda folder: _yarn(folder, attention_factor=1.4),
}
"""Name -> function that writes the checkpoint into a folder and returns it."""


def tokens_of(name: str) -> NDArray[np.int64]:
    """Return the tokens that a checkpoint's logits are taken of: int64 [N_TOKENS]."""
    generator = np.random.default_rng(len(name))
    return generator.integers(0, _SHAPE.vocab, N_TOKENS)
