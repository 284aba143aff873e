"""Checkpoints to GGUF and ONNX, and what a checkpoint computes.

::

    checkpoint folder ──> checkpoint.Checkpoint      files, headers, config.json (nothing of the weights is read)
    adapter folders ────────┤ adapter_merge          tensors that come with the adapters' changes as they are read
                            ├─> qwen                 architecture parameters, tensor names and shapes
                            ├─> vocabulary           tokens, merges, special tokens, chat template
                            ├─> gguf_writer          header first, then one tensor after the other
                            ├─> onnx_export          a folder: graph, weights, tokenizer
                            │     onnx_weights       where each weight lies and as what (onnx_data, onnx_blocks)
                            │     onnx_graph         in ONNX Runtime's operators; onnx_plain in the standard's
                            └─> reference            the forward pass in numpy, which verification compares a file with
    exported folder ──────> onnx_source ──> checkpoint.Checkpoint  F32 and F16 only
    adapter folder ───────> adapter.Adapter ──> adapter_gguf       a file that acts beside the model

The names below are imported when first used: `import qwen_edge.convert` loads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_edge.lazy import lazy_names

if TYPE_CHECKING:
    from qwen_edge.convert.adapter_gguf import AdapterReport as AdapterReport
    from qwen_edge.convert.adapter_gguf import convert_adapter as convert_adapter
    from qwen_edge.convert.adapter_merge import apply_adapters as apply_adapters
    from qwen_edge.convert.conversion import ConversionReport as ConversionReport
    from qwen_edge.convert.conversion import convert_checkpoint as convert_checkpoint
    from qwen_edge.convert.matching import DroppedTensor as DroppedTensor
    from qwen_edge.convert.onnx_export import OnnxReport as OnnxReport
    from qwen_edge.convert.onnx_export import export_onnx as export_onnx
    from qwen_edge.convert.onnx_precision import GraphForm as GraphForm
    from qwen_edge.convert.onnx_precision import OnnxPrecision as OnnxPrecision
    from qwen_edge.convert.verification import VerificationReport as VerificationReport
    from qwen_edge.convert.verification import verify_file as verify_file

_HOMES = {
    "AdapterReport": ".adapter_gguf",
    "ConversionReport": ".conversion",
    "DroppedTensor": ".matching",
    "GraphForm": ".onnx_precision",
    "OnnxPrecision": ".onnx_precision",
    "OnnxReport": ".onnx_export",
    "VerificationReport": ".verification",
    "apply_adapters": ".adapter_merge",
    "convert_adapter": ".adapter_gguf",
    "convert_checkpoint": ".conversion",
    "export_onnx": ".onnx_export",
    "verify_file": ".verification",
}

__all__ = [
    "AdapterReport",
    "ConversionReport",
    "DroppedTensor",
    "GraphForm",
    "OnnxPrecision",
    "OnnxReport",
    "VerificationReport",
    "apply_adapters",
    "convert_adapter",
    "convert_checkpoint",
    "export_onnx",
    "verify_file",
]

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
