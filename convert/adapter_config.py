"""adapter_config.json: what PEFT calculates with an adapter's tensors, and what of that is supported here.

Source: `LoraConfig` and `get_pattern_key` in the `peft` package, versions up to 0.21.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_edge.convert.json_files import Fields, shorten
from qwen_edge.errors import CheckpointError, UnsupportedError

_MAX_RANK = 2**16
_MAX_ALPHA = 1e6
_MIN_ALPHA = 1e-6

_MERGE_WITH_PEFT = "Merge it with PEFT itself (merge_and_unload, then save_pretrained) and convert the checkpoint that this makes."

# Settings under which the change is something else than alpha / rank * B @ A. Each stands for false, null or empty
# in an adapter that can be used.
_REFUSED = {
    "fan_in_fan_out": "its matrices are transposed, which no layer of Qwen needs",
    "modules_to_save": "it replaces whole layers",
    "layer_replication": "it repeats layers of the model",
    "trainable_token_indices": "it replaces rows of the embedding",
    "target_parameters": "it changes parameters that are no linear layer",
    "lora_bias": "it adds biases, for which the GGUF file has no place",
    "alora_invocation_tokens": "it works only behind certain tokens",
    "use_qalora": "its input is pooled in groups",
    "use_bdlora": "its matrices are block-diagonal",
    "arrow_config": "it chooses among adapters for each token",
    "kasa_config": "it truncates the model's weights",
    "monteclora_config": "it draws its weights at random",
}
# Ways to begin a training that leave the model's own weights alone. The others (PiSSA, OLoRA, CorDA, LoftQ …) move a
# part of them into the adapter: added to the original model it would count twice.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")

# Patterns are regular expressions, and one that is made for it runs for years on a name of 40 characters.
_MAX_PATTERN_LENGTH = 200
_MAX_CHOICES = 4


@dataclass(frozen=True)
class LoraConfig:
    """The settings of an adapter that decide what its tensors mean.

    Attributes:
        rank: Rows of A, columns of B, where no pattern says otherwise.
        alpha: The change is alpha / rank * B @ A, where no pattern says otherwise.
        uses_rslora: It is alpha / sqrt(rank) * B @ A instead (arXiv 2312.03732).
        uses_dora: Rows of the changed matrix are brought to a trained length (arXiv 2402.09353).
        rank_patterns: Regular expressions of module names, and the rank of modules that match.
        alpha_patterns: The same for alpha.
        targets: Ends of the names of all adapted modules; empty where the config does not list them.
    """

    rank: int
    alpha: float
    uses_rslora: bool
    uses_dora: bool
    rank_patterns: dict[str, int]
    alpha_patterns: dict[str, float]
    targets: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """Return the rank of a module, named as in the model that was trained."""
        return int(_pick(self.rank_patterns, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """Return the factor before B @ A of a module."""
        alpha = _pick(self.alpha_patterns, module, self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.uses_rslora else alpha / rank

    def is_target(self, module: str) -> bool:
        """Return whether the config lists a module; of one that lists none, all may be."""
        return not self.targets or any(
            module == target or module.endswith(f".{target}") for target in self.targets
        )


def parse_adapter_config(values: dict[str, Any], where: str) -> LoraConfig:
    """Read an adapter's settings.

    Args:
        values: The document adapter_config.json.
        where: Its path, for messages.

    Raises:
        CheckpointError: A setting is missing or of a wrong type.
        UnsupportedError: The adapter is of another kind than LoRA, or uses something that would be lost.
    """
    fields = Fields(values, where)
    kind = fields.text("peft_type")
    if kind != "LORA":
        raise UnsupportedError(
            f"{where}: 'peft_type' is {shorten(kind)}, supported is 'LORA' (with DoRA and rsLoRA)",
            hint=_MERGE_WITH_PEFT,
        )
    _refuse_unsupported(fields)
    ranks, alphas = fields.table("rank_pattern"), fields.table("alpha_pattern")
    return LoraConfig(
        rank=fields.integer("r", low=1, high=_MAX_RANK),
        alpha=fields.number("lora_alpha", low=_MIN_ALPHA, high=_MAX_ALPHA),
        uses_rslora=fields.boolean("use_rslora", default=False),
        uses_dora=fields.boolean("use_dora", default=False),
        rank_patterns={
            _checked_pattern(key, ranks): ranks.integer(key, low=1, high=_MAX_RANK) for key in ranks.values
        },
        alpha_patterns={
            _checked_pattern(key, alphas): alphas.number(key, low=_MIN_ALPHA, high=_MAX_ALPHA)
            for key in alphas.values
        },
        targets=_targets(fields),
    )


def _refuse_unsupported(fields: Fields) -> None:
    for key, reason in _REFUSED.items():
        if fields.values.get(key):
            raise UnsupportedError(
                f"{fields.where}: {key!r} is {shorten(fields.values[key])}: {reason}", hint=_MERGE_WITH_PEFT
            )
    bias = fields.text("bias", "none")
    if bias != "none":
        raise UnsupportedError(
            f"{fields.where}: 'bias' is {shorten(bias)}, supported is 'none': biases were trained too",
            hint=_MERGE_WITH_PEFT,
        )
    init = fields.values.get("init_lora_weights", True)
    if not isinstance(init, bool) and init is not None and init not in _PLAIN_INITS:
        raise UnsupportedError(
            f"{fields.where}: 'init_lora_weights' is {shorten(init)}: the training began by changing the model's own "
            "weights, so that this adapter does not fit the original",
            hint="PEFT turns it into a plain one: save_pretrained(…, path_initial_model_for_weight_conversion=…).",
        )


def _targets(fields: Fields) -> tuple[str, ...]:
    """Return the listed modules; () where they follow from an expression, or a part of the layers is left out."""
    value = fields.values.get("target_modules")
    if value is None or isinstance(value, str):
        return ()
    names = fields.items("target_modules")
    if not all(isinstance(name, str) and name for name in names):
        raise CheckpointError(
            f"{fields.where}: 'target_modules' is {shorten(value)}, expected names of modules"
        )
    is_partial = any(fields.values.get(key) is not None for key in ("layers_to_transform", "exclude_modules"))
    return () if is_partial else tuple(names)


def _checked_pattern(pattern: str, table: Fields) -> str:
    is_slow = len(pattern) > _MAX_PATTERN_LENGTH or len(re.findall(r"[*+?{(]", pattern)) > _MAX_CHOICES
    if is_slow or re.search(r"\)[*+{]", pattern):
        raise UnsupportedError(
            f"{table.where}: the pattern {shorten(pattern)} could take unbounded time to match",
            hint=f"Write it with at most {_MAX_CHOICES} of * + ? {{ ( and no * + {{ behind a parenthesis.",
        )
    try:
        re.compile(_whole(pattern))
    except (re.error, OverflowError) as error:
        raise CheckpointError(
            f"{table.where}: {shorten(pattern)} is no regular expression: {error}"
        ) from error
    return pattern


def _pick(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Return the value of the first pattern that matches."""
    return next((value for pattern, value in patterns.items() if re.match(_whole(pattern), module)), default)


def _whole(pattern: str) -> str:
    """Return what PEFT makes of a pattern: it matches a whole name, or the end of one behind a dot."""
    return rf"(.*\.)?({pattern})$"
