"""GGUF to a smaller GGUF, and what that costs in quality.

::

    quantizer       quantize_file: a plan carried out, and the report; the work is native/quantizer's
      └── plan      plan_quantization, predict_size: types and size before any work, and refusals
    evaluation      evaluate_kld: how far a file's predictions are from a reference file's

The names below are imported when first used: `import qwen_edge.quantize` loads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_edge.lazy import lazy_names

if TYPE_CHECKING:
    from qwen_edge.native.quantizer import Fallback as Fallback
    from qwen_edge.quantize.evaluation import QualityReport as QualityReport
    from qwen_edge.quantize.evaluation import evaluate_kld as evaluate_kld
    from qwen_edge.quantize.plan import QuantizationPlan as QuantizationPlan
    from qwen_edge.quantize.plan import plan_quantization as plan_quantization
    from qwen_edge.quantize.plan import predict_size as predict_size
    from qwen_edge.quantize.quantizer import QuantizationReport as QuantizationReport
    from qwen_edge.quantize.quantizer import quantize_file as quantize_file

_HOMES = {
    "Fallback": "qwen_edge.native.quantizer",
    "QualityReport": ".evaluation",
    "QuantizationPlan": ".plan",
    "QuantizationReport": ".quantizer",
    "evaluate_kld": ".evaluation",
    "plan_quantization": ".plan",
    "predict_size": ".plan",
    "quantize_file": ".quantizer",
}

__all__ = [
    "Fallback",
    "QualityReport",
    "QuantizationPlan",
    "QuantizationReport",
    "evaluate_kld",
    "plan_quantization",
    "predict_size",
    "quantize_file",
]

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
