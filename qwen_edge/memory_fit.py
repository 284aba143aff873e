"""What can be run in so many bytes: the best type of a model, and the settings under which it fits.

A whole process is counted, with its context full, and a tenth of the limit is left free. What is given up for that, the
least harmful first:

1. smaller batches (n_batch): prompts are read somewhat slower;
2. flash attention, then a KV cache of 8 bits too: answers come slower in long contexts;
3. a shorter context than is wanted, down to 2,048 tokens: a thought and an answer;
4. a type of fewer bits: the answers get worse;
5. a context down to 512 tokens: a question and a short answer;
6. the file is mapped, not read: starts that are not the first pay nothing, but no huge pages serve decode;
7. plain kernels on the mapped file: nothing of the weights is held but their pages, and both phases get slower;
8. pages of the weights are dropped and read again for every token: as slow as the disk is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_edge.catalog_types import CatalogModel
from qwen_edge.config import AUTO_N_CTX, DEFAULT_N_CTX, QUANTIZED_KV_TYPES, LoadConfig
from qwen_edge.memory import (
    COMMON_TYPES,
    MemoryEstimate,
    estimate_file_bytes,
    estimate_memory,
    estimate_published,
)
from qwen_edge.memory_advice import SHORTEST_N_CTX, Estimate, largest_context
from qwen_edge.memory_check import HEADROOM
from qwen_edge.memory_kernels import Kernels, expected_kernels
from qwen_edge.quant_types import file_type

# Unquantized files lose to Q8_0 in everything but the last digits: they are offered when asked for by name only.
FITTED_TYPES = tuple(name for name in COMMON_TYPES if name not in ("BF16", "F16", "F32"))
# Thinking models spend some hundred tokens and more before they answer.
ROOMY_N_CTX = 2048
# Below 64 rows the matrix kernels read the weights more often than they compute with them.
_BATCHES = (256, 128, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One file that a model can be had as.

    Attributes:
        type_name: A key of FILE_TYPES; "" where a file does not tell.
        file_bytes: Its length.
        estimate: Tells its need under settings.
    """

    type_name: str
    file_bytes: int
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFit:
    """How a model runs in a limit of memory.

    Attributes:
        type_name: Of the file.
        file_bytes: Its length.
        config: The settings; n_ctx is what was wanted, or less.
        need: What that takes.
        largest_n_ctx: The largest context that fits with the same settings, in tokens.
        disk_bytes_per_token: Weights that each token reads from the disk, since their pages have no room; else 0.
        given_up: Names of the settings that differ from those that were wanted, the least harmful first.
    """

    type_name: str
    file_bytes: int
    config: LoadConfig
    need: MemoryEstimate
    largest_n_ctx: int
    disk_bytes_per_token: int
    given_up: tuple[str, ...]

    @property
    def is_from_disk(self) -> bool:
        """Whether every token waits for the disk."""
        return self.disk_bytes_per_token > 0

    @property
    def resident_bytes(self) -> int:
        """What is held, and the pages of the file that every token reads."""
        return self.need.held_bytes + self.need.streamed_bytes

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of load() that differ from its defaults; n_ctx always."""
        names = ("n_ctx", "n_batch", "flash_attention", "kv_type", "load_mode", "safe_kernels", "n_sessions")
        default = LoadConfig()
        found = {name: getattr(self.config, name) for name in names}
        return {
            name: value for name, value in found.items() if name == "n_ctx" or value != getattr(default, name)
        }


def budget_of(limit_bytes: int) -> int:
    """Return what of a limit is planned with: other programs go on growing, and an estimate may be some percent off."""
    return int(limit_bytes * (1 - HEADROOM))


def catalog_variants(
    model: CatalogModel, *, type_name: str | None = None, kernels: Kernels | None = None
) -> tuple[Variant, ...]:
    """Return the files of a model of the catalog, those of more bits first.

    Args:
        model: A row of the catalog.
        type_name: The only one that counts; None for all that are on offer, but for unquantized ones.
        kernels: Of the build; None takes those that are expected here.

    Raises:
        ConfigError: Unknown type.
    """
    kernels = expected_kernels(LoadConfig()) if kernels is None else kernels
    if (published := model.published) is not None:
        one = Variant(
            type_name=published.type_name,
            file_bytes=published.size_bytes,
            estimate=lambda config: estimate_published(model, config, kernels=kernels),
        )
        return (one,) if type_name in (None, published.type_name) else ()
    if model.shape is None:
        return ()
    shape = model.shape
    names = FITTED_TYPES if type_name is None else (file_type(type_name).name,)
    return tuple(
        Variant(
            type_name=name,
            file_bytes=estimate_file_bytes(shape, name),
            estimate=lambda config, name=name: estimate_memory(shape, name, config, kernels=kernels),  # type: ignore[misc]
        )
        for name in names
    )


def best_fit(
    variants: Sequence[Variant], config: LoadConfig, limit_bytes: int, *, n_ctx_train: int
) -> MemoryFit | None:
    """Return the least harmful way to run a model in a limit; None where there is none.

    Args:
        variants: Its files, the best first.
        config: What is wanted. Settings that it has already given up stay so; an automatic n_ctx counts as the default.
        limit_bytes: What the whole process may have.
        n_ctx_train: What the model was trained for, in tokens.
    """
    wanted = DEFAULT_N_CTX if config.n_ctx == AUTO_N_CTX else config.n_ctx
    asked = replace(config, n_ctx=min(wanted, n_ctx_train))
    search = _Search(asked, budget_of(limit_bytes), n_ctx_train)
    for form in _forms(asked):
        for least in (ROOMY_N_CTX, SHORTEST_N_CTX):
            for variant in variants:
                found = search.settings(variant, form, min(least, asked.n_ctx), with_pages=True)
                if found is not None:
                    return search.fit(variant, found)
    paged = [
        search.fit(variant, found)
        for form in _forms(asked)
        if form.load_mode == "mmap"
        for variant in variants
        if (found := search.settings(variant, form, min(SHORTEST_N_CTX, asked.n_ctx), with_pages=False))
    ]
    return min(paged, key=lambda fit: fit.disk_bytes_per_token, default=None)


def _forms(config: LoadConfig) -> Iterator[LoadConfig]:
    """Yield the ways to hold the weights, the least harmful first."""
    yield config
    if config.load_mode == "read":
        yield replace(config, load_mode="mmap")
    if not config.safe_kernels:
        yield replace(config, load_mode="mmap", safe_kernels=True)


def _savings(config: LoadConfig) -> Iterator[LoadConfig]:
    """Yield the settings of contexts, the least harmful first."""
    caches = [config]
    if config.flash_attention == "off":
        caches.append(replace(config, flash_attention="on"))
    if config.kv_type not in QUANTIZED_KV_TYPES:
        caches.append(replace(config, flash_attention="on", kv_type="q8_0"))
    for cache in caches:
        yield cache
        for n_batch in _BATCHES:
            if n_batch < config.n_batch:
                yield replace(cache, n_batch=n_batch)


class _Search:
    """Tries settings against a budget."""

    def __init__(self, asked: LoadConfig, budget_bytes: int, n_ctx_train: int) -> None:
        self._asked = asked
        self._budget_bytes = budget_bytes
        self._n_ctx_train = n_ctx_train

    def settings(
        self, variant: Variant, form: LoadConfig, least: int, *, with_pages: bool
    ) -> LoadConfig | None:
        """Return the least harmful settings under which a file fits with a context that is long enough.

        Args:
            variant: The file.
            form: How its weights are held, and the context that is wanted.
            least: Tokens that a context must have.
            with_pages: Whether the pages that every token reads have to fit too.
        """

        def fits(need: MemoryEstimate) -> bool:
            # Within the budget too: with 95% of 512 MB a token was measured to read 239 MB from the disk.
            pages = need.streamed_bytes if with_pages else 0
            return need.held_bytes + pages <= self._budget_bytes

        savings = list(_savings(form))
        shortest = variant.estimate(replace(savings[-1], n_ctx=least))
        if shortest is None or not fits(shortest):
            return None
        longest = largest_context(variant.estimate, savings[-1], form.n_ctx, fits)
        if longest < form.n_ctx:
            return replace(savings[-1], n_ctx=longest)
        return next(
            config for config in savings if (need := variant.estimate(config)) is not None and fits(need)
        )

    def fit(self, variant: Variant, config: LoadConfig) -> MemoryFit:
        """Return what is told of settings that fit."""
        need = variant.estimate(config)
        assert need is not None, "Bug: what was tried has a need"
        is_paged = need.held_bytes + need.streamed_bytes > self._budget_bytes

        def fits(other: MemoryEstimate) -> bool:
            pages = 0 if is_paged else other.streamed_bytes
            return other.held_bytes + pages <= self._budget_bytes

        names = ("n_batch", "flash_attention", "kv_type", "n_ctx", "load_mode", "safe_kernels")
        return MemoryFit(
            type_name=variant.type_name,
            file_bytes=variant.file_bytes,
            config=config,
            need=need,
            largest_n_ctx=max(
                config.n_ctx, largest_context(variant.estimate, config, self._n_ctx_train, fits)
            ),
            # The page that was used longest ago goes first, which is the one that is needed next.
            disk_bytes_per_token=need.streamed_bytes if is_paged else 0,
            given_up=tuple(name for name in names if getattr(config, name) != getattr(self._asked, name)),
        )
