"""What would fit where something does not: the nearest changes of settings, type and model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from qwen_edge.catalog import MODELS
from qwen_edge.catalog_types import CatalogModel
from qwen_edge.config import QUANTIZED_KV_TYPES, LoadConfig
from qwen_edge.engines.onnx_folder import is_onnx
from qwen_edge.gguf_header import read_header
from qwen_edge.memory import COMMON_TYPES, MemoryEstimate, estimate_memory, estimate_tensor_bytes, fits_of
from qwen_edge.memory_kernels import Kernels
from qwen_edge.memory_shapes import (
    QUANTIZABLE_TYPES,
    REQUANTIZABLE_TYPES,
    catalog_model_of,
    header_shape,
)
from qwen_edge.quant_types import file_type_of_id

Estimate = Callable[[LoadConfig], MemoryEstimate | None]
Fits = Callable[[MemoryEstimate], bool]

# What most people run.
USUAL_TYPE = "Q4_K_M"

_STEP = 256
_MOST = 3
# A question and a short answer; nobody asks for less to save memory.
SHORTEST_N_CTX = 512


def largest_context(estimate: Estimate, config: LoadConfig, limit: int, fits: Fits) -> int:
    """Return the largest context that fits, in steps of 256 tokens up to a limit, which is one too; 0 where none does.

    Args:
        estimate: Of what is to be loaded.
        config: How, apart from n_ctx.
        limit: In tokens.
        fits: Whether a need does.
    """

    def is_enough(n_ctx: int) -> bool:
        need = estimate(replace(config, n_ctx=n_ctx))
        return need is not None and fits(need)

    if is_enough(limit):
        return limit
    low, high = 0, (limit - 1) // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_enough(_STEP * middle) else (low, middle - 1)
    return _STEP * low


def ways_out(
    estimate: Estimate,
    config: LoadConfig,
    fits: Fits,
    *,
    weights: Path | None = None,
    model: CatalogModel | None = None,
    type_name: str | None = None,
    kernels: Kernels | None = None,
) -> str:
    """Return the three nearest things that would fit, in sentences.

    Args:
        estimate: Of what does not fit.
        config: How it was to be loaded.
        fits: Whether a need does.
        weights: The file or folder, where it is one.
        model: The row of the catalog, where it is one.
        type_name: Its type.
        kernels: Of llama.cpp's build; None takes those that are expected here.
    """
    is_gguf = weights is None or not is_onnx(weights)
    found = [
        *_smaller_settings(estimate, config, fits, is_gguf=is_gguf),
        *(_smaller_file(weights, config, fits, kernels) if weights is not None and is_gguf else ()),
        *_smaller_models(estimate, config, fits, model, type_name, kernels),
    ]
    if not found:
        return "Close other programs, or take a smaller type or model: qwen-edge list shows what fits."
    return "What would fit: " + "; ".join(found[:_MOST]) + "."


def _smaller_settings(estimate: Estimate, config: LoadConfig, fits: Fits, *, is_gguf: bool) -> Iterator[str]:
    shorter = largest_context(estimate, config, config.n_ctx, fits)
    if shorter >= min(SHORTEST_N_CTX, config.n_ctx):
        yield f"n_ctx={shorter} (--n-ctx {shorter})"
    if not is_gguf or config.kv_type in QUANTIZED_KV_TYPES:
        return
    packed = replace(config, kv_type="q8_0", flash_attention="on")
    need = estimate(packed)
    if need is not None and fits(need):
        yield 'kv_type="q8_0" with flash_attention="on" (--kv-type q8_0), which decodes slower in long contexts'
        return
    plain = replace(config, flash_attention="on")
    need = estimate(plain)
    if need is not None and config.flash_attention == "off" and fits(need):
        yield 'flash_attention="on" (--flash-attention on), which decodes slower in long contexts'


def _smaller_file(weights: Path, config: LoadConfig, fits: Fits, kernels: Kernels | None) -> Iterator[str]:
    """Yield the largest smaller type of a file that fits, and how it is made or had."""
    header = read_header(weights)
    shape, kind = header_shape(header), file_type_of_id(header.metadata.get("general.file_type"))
    if shape is None or kind is None:
        return
    tensor_bytes = sum(tensor.n_bytes for tensor in header.tensors)
    fitting = (
        name
        for name in COMMON_TYPES
        if name != kind.name
        and estimate_tensor_bytes(shape, name) < tensor_bytes
        and fits(estimate_memory(shape, name, config, kernels=kernels))
    )
    type_name = next(fitting, None)
    if type_name is None:
        return
    if kind.name in (*QUANTIZABLE_TYPES, *REQUANTIZABLE_TYPES):
        again = " --allow-requantize" if kind.name in REQUANTIZABLE_TYPES else ""
        yield f"another type, qwen-edge quantize {weights} -t {type_name}{again}"
    elif (model := catalog_model_of(header, shape)) is not None and model.published is None:
        yield f"another type, {model.name}@{type_name} (qwen-edge pull {model.name}@{type_name})"


def _smaller_models(
    estimate: Estimate,
    config: LoadConfig,
    fits: Fits,
    model: CatalogModel | None,
    type_name: str | None,
    kernels: Kernels | None,
) -> Iterator[str]:
    """Yield the largest smaller type of the model, and the largest smaller chat model that fits as usual."""
    now = estimate(config)
    if now is None:
        return
    if model is not None:
        for fit in fits_of(model, config, 0, kernels=kernels):
            smaller = fit.memory.held_bytes < now.held_bytes and fit.type_name != type_name
            if smaller and fits(fit.memory):
                yield f"another type, {model.name}@{fit.type_name}"
                break
    weights_bytes = now.weights_bytes + now.mapped_bytes
    types = (type_name, USUAL_TYPE)
    candidates = [
        (row.n_weights, fit.file_bytes, row.name, fit)
        for row in MODELS.values()
        if row.kind == "chat" and row.shape is not None and (model is None or row.family == model.family)
        for fit in fits_of(row, config, 0, kernels=kernels)
        if fit.type_name in types
        and fit.memory.weights_bytes + fit.memory.mapped_bytes < weights_bytes
        and fits(fit.memory)
    ]
    if candidates:
        _, _, name, fit = max(candidates, key=lambda item: item[:2])
        yield f"another model, {name}@{fit.type_name}"
