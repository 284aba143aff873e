"""GGUF to a smaller GGUF, and what that costs in quality.

::

    quantizer     quantize_file, predict_size: checks, prediction, report; the work is native/quantizer's
      └── header  metadata and tensor table of a GGUF file, without its weights

The names below are imported when first used: `import qwen_edge.quantize` loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_edge.native.quantizer import Fallback as Fallback
    from qwen_edge.quantize.quantizer import QuantizationReport as QuantizationReport
    from qwen_edge.quantize.quantizer import predict_size as predict_size
    from qwen_edge.quantize.quantizer import quantize_file as quantize_file

_HOMES = {
    "Fallback": "quantizer",
    "QuantizationReport": "quantizer",
    "predict_size": "quantizer",
    "quantize_file": "quantizer",
}

__all__ = ["Fallback", "QuantizationReport", "predict_size", "quantize_file"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"qwen_edge.quantize.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
