"""Check of the memory: does the model that is planned fit, or which would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from qwen_edge import device
from qwen_edge.catalog import MODELS, CatalogModel, parse_model_name
from qwen_edge.config import LoadConfig
from qwen_edge.doctor.report import Check
from qwen_edge.engines.onnx_folder import is_onnx
from qwen_edge.errors import FormatError, ModelNotFoundError
from qwen_edge.gguf_header import read_header
from qwen_edge.memory import MemoryEstimate, estimate_memory, fits_of
from qwen_edge.memory_advice import USUAL_TYPE
from qwen_edge.memory_check import memory_estimator
from qwen_edge.memory_kernels import expected_kernels
from qwen_edge.quant_types import file_type_of_id

GROUP = "Memory"


def check_fit(name: str | None, n_ctx: int) -> Iterator[Check]:
    """Compare what a model needs with what is free.

    Args:
        name: A model's name, with or without @TYPE, a GGUF file or an ONNX folder; None for the largest that fits.
        n_ctx: Tokens that the context is to hold.

    Raises:
        QwenEdgeError: No such model or file, or one of which nothing is known.
    """
    memory = device.available_memory_bytes()
    if name is None:
        yield _largest(n_ctx, memory)
        return
    found = parse_model_name(name)
    if found.path is not None:
        yield _check_file(found.path, n_ctx, memory)
    elif found.model is not None:
        yield _check_model(found.model, found.type_name, n_ctx, memory)
    else:
        raise ModelNotFoundError(
            f"{name} is a repository of which nothing is known before it is here",
            hint=f"Fetch it, then name the file: qwen-edge pull {name}",
        )


def _largest(n_ctx: int, memory: device.AvailableMemory) -> Check:
    fitting = [
        (model, fit)
        for model in MODELS.values()
        if model.shape is not None and model.kind == "chat"
        for fit in fits_of(model, LoadConfig(n_ctx=n_ctx), memory.available_bytes)
        if fit.type_name == USUAL_TYPE and fit.fits
    ]
    if not fitting:
        return Check(
            group=GROUP,
            name="fit",
            status="warning",
            found=f"no model of the catalog fits as {USUAL_TYPE} with a context of {n_ctx} tokens: {memory.reason}",
            advice="Close other programs, or ask for less: qwen-edge list --n-ctx 1024",
        )
    model, fit = max(fitting, key=lambda item: item[0].n_weights)
    return Check(
        group=GROUP,
        name="fit",
        status="ok",
        found=f"the largest model that fits as {USUAL_TYPE} with a context of {n_ctx} tokens: {model.name} "
        f"({_gigabytes(fit.memory.total_bytes)} of {_gigabytes(memory.available_bytes)})",
    )


def _check_model(
    model: CatalogModel, type_name: str | None, n_ctx: int, memory: device.AvailableMemory
) -> Check:
    shown, need = _need(model, type_name, n_ctx)
    title = f"{model.name} as {shown}"
    if need.wanted_bytes <= memory.available_bytes:
        return _compared(title, need, n_ctx, memory)
    smaller = [
        fit
        for fit in fits_of(model, LoadConfig(n_ctx=n_ctx), memory.available_bytes)
        if fit.fits and fit.memory.total_bytes < need.total_bytes
    ]
    short_ctx = _shorter(n_ctx)
    _, short = _need(model, shown, short_ctx)
    advice = [f"qwen-edge pull {model.name}@{fit.type_name}" for fit in smaller[:1]]
    return _compared(title, need, n_ctx, memory, advice=advice, short=short)


def _need(model: CatalogModel, type_name: str | None, n_ctx: int) -> tuple[str, MemoryEstimate]:
    """Return a type of a model, the usual one without a name, and what it needs."""
    fits = {fit.type_name: fit.memory for fit in fits_of(model, LoadConfig(n_ctx=n_ctx), 0)}
    wanted = type_name or (USUAL_TYPE if USUAL_TYPE in fits else next(iter(fits), ""))
    if wanted in fits:
        return wanted, fits[wanted]
    if model.shape is not None:
        return wanted, estimate_memory(model.shape, wanted, LoadConfig(n_ctx=n_ctx))
    raise ModelNotFoundError(
        f"{model.name} is not offered as {wanted}", hint=f"qwen-edge list {model.name} shows what is."
    )


def _check_file(path: Path, n_ctx: int, memory: device.AvailableMemory) -> Check:
    title = path.name
    if not is_onnx(path):
        header = read_header(path)
        kind = file_type_of_id(header.metadata.get("general.file_type"))
        title += f" ({kind.name})" if kind else ""
    estimate = memory_estimator(path, LoadConfig(), kernels=expected_kernels(LoadConfig(), path))
    need, short = (estimate(LoadConfig(n_ctx=n)) if estimate else None for n in (n_ctx, _shorter(n_ctx)))
    if need is None:
        raise FormatError(f"{path} does not tell the sizes of its model")
    return _compared(title, need, n_ctx, memory, short=short)


def _shorter(n_ctx: int) -> int:
    return max(256, n_ctx // 4)


def _compared(
    title: str,
    need: MemoryEstimate,
    n_ctx: int,
    memory: device.AvailableMemory,
    *,
    advice: Sequence[str] = (),
    short: MemoryEstimate | None = None,
) -> Check:
    """Return the finding.

    Args:
        title: What is to be loaded.
        need: What that takes.
        n_ctx: With this context, in tokens.
        memory: What is free.
        advice: Ways out that were found.
        short: What a shorter context takes; a way out where it fits.
    """
    fits = need.wanted_bytes <= memory.available_bytes
    if short is not None and not fits and short.wanted_bytes <= memory.available_bytes:
        advice = [*advice, f"a shorter context: --n-ctx {_shorter(n_ctx)}"]
    return Check(
        group=GROUP,
        name="fit",
        status="ok" if fits else "problem",
        found=f"{title} needs {_gigabytes(need.total_bytes)} with a context of {n_ctx} tokens "
        f"({_gigabytes(need.weights_bytes)} weights, {_gigabytes(need.kv_bytes)} cache); {memory.reason}",
        cost="" if fits else "it does not fit",
        advice="" if fits else ", or ".join(advice) or "qwen-edge list",
    )


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
