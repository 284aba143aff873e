"""Checkpoints to GGUF.

::

    checkpoint folder ──> checkpoint.Checkpoint      files, headers, config.json (nothing of the weights is read)
    adapter folders ────────┤ adapter_merge          tensors that come with the adapters' changes as they are read
                            ├─> qwen                 architecture parameters, tensor names and shapes
                            ├─> vocabulary           tokens, merges, special tokens, chat template
                            └─> gguf_writer          header first, then one tensor after the other
    adapter folder ───────> adapter.Adapter ──> adapter_gguf       a file that acts beside the model

The names below are imported when first used: `import qwen_edge.convert` loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_edge.convert.adapter_gguf import AdapterReport as AdapterReport
    from qwen_edge.convert.adapter_gguf import convert_adapter as convert_adapter
    from qwen_edge.convert.adapter_merge import apply_adapters as apply_adapters
    from qwen_edge.convert.conversion import ConversionReport as ConversionReport
    from qwen_edge.convert.conversion import DroppedTensor as DroppedTensor
    from qwen_edge.convert.conversion import convert_checkpoint as convert_checkpoint

_MODULES = {
    "AdapterReport": "adapter_gguf",
    "ConversionReport": "conversion",
    "DroppedTensor": "conversion",
    "apply_adapters": "adapter_merge",
    "convert_adapter": "adapter_gguf",
    "convert_checkpoint": "conversion",
}

__all__ = [
    "AdapterReport",
    "ConversionReport",
    "DroppedTensor",
    "apply_adapters",
    "convert_adapter",
    "convert_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"qwen_edge.convert.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
