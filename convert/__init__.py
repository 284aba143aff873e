"""Checkpoints to GGUF, and what a checkpoint computes.

::

    checkpoint folder ──> checkpoint.Checkpoint      files, headers, config.json (nothing of the weights is read)
                            ├─> qwen                 architecture parameters, tensor names and shapes
                            ├─> vocabulary           tokens, merges, special tokens, chat template
                            ├─> gguf_writer          header first, then one tensor after the other
                            └─> reference            the forward pass in numpy, which verification compares a file with

The names below are imported when first used: `import qwen_edge.convert` loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_edge.convert.conversion import ConversionReport as ConversionReport
    from qwen_edge.convert.conversion import convert_checkpoint as convert_checkpoint
    from qwen_edge.convert.matching import DroppedTensor as DroppedTensor
    from qwen_edge.convert.verification import VerificationReport as VerificationReport
    from qwen_edge.convert.verification import verify_file as verify_file

_HOMES = {
    "ConversionReport": "qwen_edge.convert.conversion",
    "DroppedTensor": "qwen_edge.convert.matching",
    "VerificationReport": "qwen_edge.convert.verification",
    "convert_checkpoint": "qwen_edge.convert.conversion",
    "verify_file": "qwen_edge.convert.verification",
}

__all__ = ["ConversionReport", "DroppedTensor", "VerificationReport", "convert_checkpoint", "verify_file"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
