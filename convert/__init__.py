"""Checkpoints to GGUF.

::

    checkpoint folder ──> checkpoint.Checkpoint      files, headers, config.json (nothing of the weights is read)
                            ├─> qwen                 architecture parameters, tensor names and shapes
                            ├─> vocabulary           tokens, merges, special tokens, chat template
                            └─> gguf_writer          header first, then one tensor after the other

The names below are imported when first used: `import qwen_edge.convert` loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_edge.convert.conversion import ConversionReport as ConversionReport
    from qwen_edge.convert.conversion import convert_checkpoint as convert_checkpoint
    from qwen_edge.convert.matching import DroppedTensor as DroppedTensor

__all__ = ["ConversionReport", "DroppedTensor", "convert_checkpoint"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module("qwen_edge.convert.conversion"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
