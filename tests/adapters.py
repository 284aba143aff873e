"""PEFT adapters made by hand: deterministic random LoRA and DoRA weights in the form in which PEFT saves them.

Nothing here uses the converter: tests compare the two.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class MadeAdapter:
    """An adapter on disk, and what was written there.

    Attributes:
        folder: With adapter_config.json and adapter_model.safetensors.
        config: The first.
        tensors: The second.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Array]


def adapter_config(**changes: Any) -> dict[str, Any]:
    """Return adapter_config.json as PEFT 0.21 writes it, with some settings changed."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "tiny-qwen3",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
    } | changes


def write_adapter(
    folder: Path,
    base: Path,
    *,
    seed: int = 0,
    strength: float = 0.3,
    dtype: str = "F32",
    ranks: Callable[[str], int] | None = None,
    rename: Callable[[str], str] = lambda name: name,
    **config: Any,
) -> MadeAdapter:
    """Write an adapter for a checkpoint.

    The weights of a tensor depend on the seed and its name alone.

    Args:
        folder: Made where absent.
        base: The checkpoint; shapes are those of its tensors.
        seed: Other seeds give other weights.
        strength: Spread of B; A has one of 1 / sqrt(columns).
        dtype: "F32", "F16" or "BF16".
        ranks: Rank of a module by its name, where it is not `r` for all.
        rename: Applied to the names in the file.
        **config: Settings of adapter_config.json in place of those of `adapter_config`.
    """
    settings = adapter_config(**config)
    tensors: dict[str, Array] = {}
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if weight.ndim != 2 or module.rpartition(".")[2] not in settings["target_modules"]:
            continue
        rank = ranks(module) if ranks else settings["r"]
        rows, columns = weight.shape
        parts = {
            "lora_A.weight": _random(f"{module}.A", (rank, columns), columns**-0.5, seed),
            "lora_B.weight": _random(f"{module}.B", (rows, rank), strength, seed),
        }
        if settings["use_dora"]:
            lengths = np.linalg.norm(weight.astype(np.float32), axis=1)
            parts["lora_magnitude_vector"] = lengths * (1 + _random(f"{module}.m", (rows,), 0.1, seed))
        for part, values in parts.items():
            tensors[rename(f"base_model.model.{module}.{part}")] = values.astype(DTYPES[dtype])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return MadeAdapter(folder, settings, tensors)


def merged_by_formula(
    weights: dict[str, Array], adapters: Sequence[tuple[MadeAdapter, float]]
) -> dict[str, Array]:
    """Return the changed matrices of a checkpoint in float64, by PEFT's definition; the ranks are A's rows."""
    changed: dict[str, Array] = {}
    for adapter, scale in adapters:
        config = adapter.config
        for name in adapter.tensors:
            if not name.endswith(".lora_A.weight"):
                continue
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            a = adapter.tensors[name].astype(np.float64)
            b = adapter.tensors[name.replace("lora_A", "lora_B")].astype(np.float64)
            factor = config["lora_alpha"] / (len(a) ** 0.5 if config["use_rslora"] else len(a))
            key = f"{module}.weight"
            base = weights[key].astype(np.float64)
            before = changed.get(key, base)
            after = before + factor * b @ a
            if config["use_dora"]:
                magnitude = adapter.tensors[name.replace("lora_A.weight", "lora_magnitude_vector")]
                lengths = np.linalg.norm(base + factor * b @ a, axis=1)
                after *= (magnitude.astype(np.float64) / lengths)[:, None]
            changed[key] = before + scale * (after - before)
    return changed


def _random(name: str, shape: tuple[int, ...], spread: float, seed: int) -> Array:
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.standard_normal(shape, dtype=np.float32) * np.float32(spread)
