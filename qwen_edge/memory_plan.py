"""The memory that a model will need, planned from its name or file before anything is fetched or loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qwen_edge import device
from qwen_edge.bundle.record import bundled_model
from qwen_edge.catalog import MODELS, CatalogModel, parse_model_name
from qwen_edge.config import AUTO_N_CTX, LoadConfig
from qwen_edge.engines.onnx_folder import is_onnx
from qwen_edge.errors import FormatError, ModelNotFoundError, UnsupportedError
from qwen_edge.gguf_header import read_header
from qwen_edge.memory import MemoryEstimate, estimate_memory, estimate_published
from qwen_edge.memory_advice import USUAL_TYPE, Estimate, largest_context, ways_out
from qwen_edge.memory_check import automatic_context, memory_estimator, n_ctx_train
from qwen_edge.memory_fit import MemoryFit, Variant, best_fit, catalog_variants
from qwen_edge.memory_kernels import Kernels, expected_kernels
from qwen_edge.quant_types import file_type, file_type_of_id


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What loading would need, and what there is.

    Attributes:
        title: The model's name, or the file's.
        type_name: Its type; None where a file does not tell.
        config: Settings, n_ctx a number.
        need: What it needs.
        free: What is free.
        fits: Whether loading would be allowed.
        largest_n_ctx: The largest context that fits, in tokens; 0 where none does.
        advice: What would fit instead; "" where it fits.
    """

    title: str
    type_name: str | None
    config: LoadConfig
    need: MemoryEstimate
    free: device.AvailableMemory
    fits: bool
    largest_n_ctx: int
    advice: str


def plan_memory(name: str, config: LoadConfig) -> MemoryPlan:
    """Return the plan for a model of the catalog, with or without @TYPE, a GGUF file, an exported folder or a bundle.

    Args:
        name: As typed.
        config: How it is to be loaded; n_ctx may be automatic.

    Raises:
        ModelNotFoundError: No such model or file, or one of which nothing is known before it is here.
        ConfigError: Unknown type.
        FormatError: A file is damaged, or does not tell the sizes of its model.
        UnsupportedError: A type whose size is not known here.
    """
    found = parse_model_name(name)
    if found.path is not None:
        found = replace(found, path=bundled_model(found.path))
    kernels = expected_kernels(config, found.path)
    type_name: str | None
    if found.path is not None:
        title, model, trained = found.path.name, None, None
        type_name = None
        if not is_onnx(found.path):
            kind = file_type_of_id(read_header(found.path).metadata.get("general.file_type"))
            type_name = kind.name if kind else None
        estimate = memory_estimator(found.path, config, kernels=kernels)
        if estimate is None:
            raise FormatError(f"{found.path} does not tell the sizes of its model")
        trained = n_ctx_train(found.path)
    elif found.model is not None:
        title, model, trained = found.model.name, found.model, found.model.n_ctx_train
        type_name, estimate = _catalog_estimate(found.model, found.type_name, kernels)
    else:
        raise ModelNotFoundError(
            f"{name} is a repository of which nothing is known before it is here",
            hint=f"Fetch it, then name the file: qwen-edge pull {name}",
        )
    free = device.available_memory_bytes()

    def fits(need: MemoryEstimate) -> bool:
        return need.wanted_bytes <= free.available_bytes

    if config.n_ctx == AUTO_N_CTX:
        config = replace(config, n_ctx=automatic_context(estimate, config, free, trained))
    need = estimate(config)
    assert need is not None, "Bug: an estimator that was made tells a need"
    return MemoryPlan(
        title=title,
        type_name=type_name,
        config=config,
        need=need,
        free=free,
        fits=fits(need),
        largest_n_ctx=largest_context(estimate, config, trained or config.n_ctx, fits),
        advice=""
        if fits(need)
        else ways_out(
            estimate, config, fits, weights=found.path, model=model, type_name=type_name, kernels=kernels
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFit:
    """How one model runs in a limit of memory.

    Attributes:
        title: The model's name, or the file's.
        reference: What load() takes for it.
        fit: None where it does not.
    """

    title: str
    reference: str
    fit: MemoryFit | None


def fit_memory(name: str | None, config: LoadConfig, limit_bytes: int) -> tuple[NamedFit, ...]:
    """Return what of a model, or of every model of the catalog, runs in a limit: what stays in memory comes first.

    Args:
        name: A model of the catalog, with or without @TYPE, or a GGUF file; None for the catalog.
        config: What is wanted; see memory_fit for what is given up for a fit.
        limit_bytes: What the whole process may have.

    Raises:
        ModelNotFoundError: No such model or file, or one of which nothing is known before it is here.
        ConfigError: Unknown type.
        FormatError: A file is damaged, or does not tell the sizes of its model.
        UnsupportedError: A folder exported to ONNX, which has no such settings.
    """
    if name is None:
        fits = (_fit_of(row, None, config, limit_bytes) for row in MODELS.values())
        return tuple(
            sorted(fits, key=lambda each: (each.fit is None, bool(each.fit and each.fit.is_from_disk)))
        )
    found = parse_model_name(name)
    if found.model is not None:
        return (_fit_of(found.model, found.type_name, config, limit_bytes),)
    if found.path is None:
        raise ModelNotFoundError(
            f"{name} is a repository of which nothing is known before it is here",
            hint=f"Fetch it, then name the file: qwen-edge pull {name}",
        )
    if is_onnx(found.path):
        raise UnsupportedError(
            f"{found.path} is an ONNX model, which has no settings that save memory but --n-ctx",
            hint=f"qwen-edge plan {found.path} tells its need and the largest context.",
        )
    estimate = memory_estimator(found.path, config)
    if estimate is None:
        raise FormatError(f"{found.path} does not tell the sizes of its model")
    kind = file_type_of_id(read_header(found.path).metadata.get("general.file_type"))
    variant = Variant(
        type_name=kind.name if kind else "", file_bytes=found.path.stat().st_size, estimate=estimate
    )
    trained = n_ctx_train(found.path) or LoadConfig().n_ctx
    fit = best_fit((variant,), config, limit_bytes, n_ctx_train=trained)
    return (NamedFit(title=found.path.name, reference=str(found.path), fit=fit),)


def _fit_of(model: CatalogModel, type_name: str | None, config: LoadConfig, limit_bytes: int) -> NamedFit:
    variants = catalog_variants(model, type_name=type_name)
    fit = best_fit(variants, config, limit_bytes, n_ctx_train=model.n_ctx_train)
    reference = f"{model.name}@{fit.type_name.lower()}" if fit else model.name
    return NamedFit(title=model.name, reference=reference, fit=fit)


def _catalog_estimate(model: CatalogModel, asked: str | None, kernels: Kernels) -> tuple[str, Estimate]:
    published, shape = model.published, model.shape
    if published is not None:
        wanted = asked or published.type_name
        if wanted == published.type_name:
            return wanted, lambda config: estimate_published(model, config, kernels=kernels)
    elif shape is not None:
        type_name = file_type(asked or USUAL_TYPE).name
        return type_name, lambda config: estimate_memory(shape, type_name, config, kernels=kernels)
    raise ModelNotFoundError(
        f"{model.name} is not offered as {asked}", hint=f"qwen-edge list {model.name} shows what is."
    )
