"""Rotary position embedding: its base and scaling as config.json states them, and the angles that follow.

Source of YaRN: arXiv 2309.00071; `_compute_yarn_parameters` in transformers, which llama.cpp agrees with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qwen_edge.convert.json_files import Fields
from qwen_edge.errors import CheckpointError, UnsupportedError

# Rotations within the original context beyond which a frequency is kept, and below which it is interpolated.
YARN_BETA_FAST, YARN_BETA_SLOW = 32.0, 1.0
_SCALED_TYPES = ("linear", "yarn")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How a model's context was stretched beyond that of its training.

    Attributes:
        kind: "linear" divides every frequency by `factor`; "yarn" the low ones only.
        factor: By how much, at least 1.
        n_ctx_original: Tokens of context before, used by YaRN.
        attention_factor: Multiplies sines and cosines, 1.0 for "linear".
        beta_fast: YaRN keeps frequencies of more rotations than this.
        beta_slow: YaRN interpolates frequencies of fewer rotations than this.
    """

    kind: Literal["linear", "yarn"]
    factor: float
    n_ctx_original: int
    attention_factor: float = 1.0
    beta_fast: float = YARN_BETA_FAST
    beta_slow: float = YARN_BETA_SLOW


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The rotary embedding of one model.

    Attributes:
        theta: Base of the frequencies.
        scaling: None for a model that keeps its training's context.
    """

    theta: float
    scaling: RopeScaling | None = None

    def frequencies(self, head_dim: int) -> NDArray[np.float64]:
        """Return the angle that one position adds to each pair of a head: float64 [head_dim / 2], radians."""
        pairs = np.arange(0, head_dim, 2) / head_dim
        kept = self.theta**-pairs
        scaling = self.scaling
        if scaling is None:
            return kept
        if scaling.kind == "linear":
            return kept / scaling.factor
        low = max(math.floor(self._pair_of(scaling.beta_fast, head_dim)), 0)
        high = min(math.ceil(self._pair_of(scaling.beta_slow, head_dim)), head_dim - 1)
        # Both sources keep the ramp from a division by zero this way.
        width = max(high - low, 0.001)
        interpolated = np.clip((np.arange(head_dim // 2) - low) / width, 0.0, 1.0)
        return kept * (1 - interpolated) + kept / scaling.factor * interpolated

    def _pair_of(self, rotations: float, head_dim: int) -> float:
        """Return the pair (a real number) that turns so often within the original context."""
        assert self.scaling is not None, "Bug: only YaRN asks"
        turns = self.scaling.n_ctx_original / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(self.theta))


def yarn_attention_factor(factor: float, weight: float = 1.0) -> float:
    """Return YaRN's default scale of sines and cosines, 0.1 * weight * ln(factor) + 1."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def read_rope(fields: Fields, n_ctx_train: int) -> Rope:
    """Read base and scaling from the old places (`rope_theta`, `rope_scaling`) or the new one (`rope_parameters`).

    Args:
        fields: config.json.
        n_ctx_train: Its max_position_embeddings: the original context where the scaling names none.

    Raises:
        CheckpointError: A value is missing, of a wrong type or out of range, or two places contradict each other.
        UnsupportedError: The scaling is another than linear and YaRN, or would be lost in the GGUF file.
    """
    tables = [fields.table(key) for key in ("rope_parameters", "rope_scaling")]
    for place in (fields, *tables):
        if "partial_rotary_factor" in place and place.number("partial_rotary_factor", low=0, high=1) != 1:
            raise UnsupportedError(f"{place.where}: rotating a part of each head is not supported")
    base = tables[0] if "rope_theta" in tables[0] else fields
    theta = base.number("rope_theta", low=1.0 + 1e-6, high=1e12)
    scalings = [scaling for table in tables if (scaling := _read_scaling(table, n_ctx_train)) is not None]
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        raise CheckpointError(
            f"{fields.where}: 'rope_parameters' and 'rope_scaling' ask for different scalings",
            hint="Keep the one that the model was made for, and remove the other.",
        )
    return Rope(theta=theta, scaling=scalings[0] if scalings else None)


def _read_scaling(table: Fields, n_ctx_train: int) -> RopeScaling | None:
    # Newer writers say "rope_type", older ones "type", some both.
    kinds = {table.text(name, "default") for name in ("rope_type", "type")} - {"default"}
    if not kinds:
        return None
    kind = min(kinds)
    if len(kinds) > 1 or kind not in _SCALED_TYPES:
        raise UnsupportedError(
            f"{table.where} asks for rope type {' and '.join(map(repr, sorted(kinds)))}; "
            f"supported are 'default', {', '.join(map(repr, _SCALED_TYPES))}",
            hint='Set its type to "default" to convert the model for its original context length.',
        )
    factor = table.number("factor", low=1.0, high=1e6)
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor, n_ctx_original=n_ctx_train)
    if not table.boolean("truncate", default=True):
        raise UnsupportedError(f"{table.where}: 'truncate' is false, which llama.cpp does not know")
    n_ctx_original = n_ctx_train
    if "original_max_position_embeddings" in table:
        n_ctx_original = table.integer("original_max_position_embeddings", low=1, high=2**31 - 1)
    beta_fast, beta_slow = (
        table.number(key, low=1e-3, high=1e6) if key in table else default
        for key, default in (("beta_fast", YARN_BETA_FAST), ("beta_slow", YARN_BETA_SLOW))
    )
    return RopeScaling(
        kind="yarn",
        factor=factor,
        n_ctx_original=n_ctx_original,
        attention_factor=_attention_factor(table, factor),
        beta_fast=beta_fast,
        beta_slow=beta_slow,
    )


def _attention_factor(table: Fields, factor: float) -> float:
    if "attention_factor" in table:
        return table.number("attention_factor", low=1e-6, high=1e6)
    if "mscale" in table and "mscale_all_dim" in table:
        weights = [table.number(key, low=0.0, high=1e6) for key in ("mscale", "mscale_all_dim")]
        if all(weights):
            return yarn_attention_factor(factor, weights[0]) / yarn_attention_factor(factor, weights[1])
    return yarn_attention_factor(factor)
