"""Logits with an adapter merged, and with the same adapter beside the model: two ways to one answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from qwen_edge.convert import apply_adapters, convert_adapter, convert_checkpoint, verify_file
from qwen_edge.convert.checkpoint import open_checkpoint
from qwen_edge.convert.reference import Reference
from tests.adapters import MadeAdapter, write_adapter
from tests.synthetic import TINY_QWEN3

Logits = NDArray[np.float32]
Score = Any  # see conftest.py
Record = Callable[[str, object], None]

# Logits of about 10; the two ways sum the same float32 products in another order.
TOLERANCE = 1e-4
# An adapter in F16 has weights rounded to 11 bits.
F16_TOLERANCE = 1e-2
# What the adapters change is larger by this much at least, so that the comparison means something.
MARGIN = 5000


def _gguf(made: MadeAdapter, folder: Path, dtype: Any = "f32") -> Path:
    path = folder / f"{made.folder.name}-{dtype}.gguf"
    convert_adapter(made.folder, TINY_QWEN3, path, dtype=dtype)
    return path


def _merged(folder: Path, adapters: list[Any]) -> Path:
    path = folder / "merged-f32.gguf"
    convert_checkpoint(TINY_QWEN3, path, dtype="f32", adapters=adapters)
    return path


def _difference(left: Logits, right: Logits) -> float:
    return float(np.abs(left - right).max())


@pytest.mark.parametrize("which", ["adapter", "other"], ids=["lora", "rslora-patterns"])
def test_merged_and_beside_give_the_same_logits(
    request: pytest.FixtureRequest,
    which: str,
    tiny_f32: Path,
    score: Score,
    tmp_path: Path,
    record_property: Record,
) -> None:
    made: MadeAdapter = request.getfixturevalue(which)
    base = score(tiny_f32)
    beside = score(tiny_f32, adapters=[_gguf(made, tmp_path)])
    merged = score(_merged(tmp_path, [made.folder]))
    error, effect = _difference(beside, merged), _difference(base, merged)
    record_property("max_error", error)
    record_property("max_effect", effect)
    assert error < TOLERANCE
    assert effect > MARGIN * TOLERANCE


def _with_deltas(made: MadeAdapter, folder: Path) -> Path:
    """Return a copy of the checkpoint with alpha / r * B A added in float64, by this file's own arithmetic."""
    shutil.copytree(TINY_QWEN3, folder, ignore=shutil.ignore_patterns("*.safetensors", "eval"))
    weights = {name: values.astype(np.float64) for name, values in _weights(TINY_QWEN3).items()}
    for name, down in made.tensors.items():
        if name.endswith("lora_A.weight"):
            up = made.tensors[name.replace("lora_A", "lora_B")].astype(np.float64)
            target = name.removeprefix("base_model.model.").replace("lora_A.", "")
            weights[target] += made.config["lora_alpha"] / made.config["r"] * (up @ down.astype(np.float64))
    save_file(
        {name: values.astype(np.float32) for name, values in weights.items()}, folder / "model.safetensors"
    )
    return folder


def _weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def test_all_ways_give_what_the_reference_computes(
    adapter: MadeAdapter, tiny_f32: Path, score: Score, tmp_path: Path, record_property: Record
) -> None:
    """Merged, beside the model, the reference on the merged checkpoint, and on one with the deltas added by hand."""
    merged_path = _merged(tmp_path, [adapter.folder])
    assert verify_file(merged_path, TINY_QWEN3, adapters=[adapter.folder], n_threads=1).is_within_limits
    assert not verify_file(merged_path, TINY_QWEN3, n_threads=1).is_within_limits
    ways = {
        "merged": score(merged_path),
        "beside": score(tiny_f32, adapters=[_gguf(adapter, tmp_path)]),
    }
    tokens = score.tokens(tiny_f32)
    checkpoint = open_checkpoint(TINY_QWEN3)
    (ways["reference"],) = Reference(apply_adapters(checkpoint, [adapter.folder])).logits([tokens])
    (by_hand,) = Reference(open_checkpoint(_with_deltas(adapter, tmp_path / "by-hand"))).logits([tokens])
    for way, logits in ways.items():
        error = _difference(logits, by_hand)
        record_property(f"{way}_error", error)
        assert error < TOLERANCE, way
    (without,) = Reference(checkpoint).logits([tokens])
    assert _difference(by_hand, without) > MARGIN * TOLERANCE


def test_two_adapters_with_scales(
    adapter: MadeAdapter,
    other: MadeAdapter,
    tiny_f32: Path,
    score: Score,
    tmp_path: Path,
    record_property: Record,
) -> None:
    first, second = _gguf(adapter, tmp_path), _gguf(other, tmp_path)
    beside = score(tiny_f32, adapters=[(first, 0.5), (second, -0.75)])
    merged = score(_merged(tmp_path, [(adapter.folder, 0.5), (other.folder, -0.75)]))
    error = _difference(beside, merged)
    record_property("max_error", error)
    assert error < TOLERANCE
    assert _difference(beside, score(tiny_f32, adapters=[(first, 0.5)])) > MARGIN * TOLERANCE
    assert _difference(beside, score(tiny_f32, adapters=[first, second])) > MARGIN * TOLERANCE


def test_scale_zero_is_the_model(adapter: MadeAdapter, tiny_f32: Path, score: Score, tmp_path: Path) -> None:
    assert (score(tiny_f32, adapters=[(_gguf(adapter, tmp_path), 0.0)]) == score(tiny_f32)).all()


def test_an_adapter_in_f16_is_near(
    adapter: MadeAdapter, tiny_f32: Path, score: Score, tmp_path: Path, record_property: Record
) -> None:
    in_f32, in_f16 = _gguf(adapter, tmp_path), _gguf(adapter, tmp_path, "f16")
    assert in_f16.stat().st_size < 0.6 * in_f32.stat().st_size
    error = _difference(score(tiny_f32, adapters=[in_f16]), score(tiny_f32, adapters=[in_f32]))
    record_property("max_error", error)
    assert 0 < error < F16_TOLERANCE


def test_dora_is_merged_by_rows(tiny_f32: Path, score: Score, tmp_path: Path) -> None:
    """Without its lengths the same LoRA is another model: the magnitudes take part in what llama.cpp computes."""
    dora = write_adapter(tmp_path / "dora", TINY_QWEN3, seed=3, strength=0.05, use_dora=True)
    lora = write_adapter(tmp_path / "lora", TINY_QWEN3, seed=3, strength=0.05)
    merged = score(_merged(tmp_path, [dora.folder]))
    assert np.isfinite(merged).all()
    assert _difference(merged, score(_merged(tmp_path, [lora.folder]))) > MARGIN * TOLERANCE
    assert _difference(merged, score(tiny_f32)) > MARGIN * TOLERANCE


@pytest.mark.parametrize("safe_kernels", [False, True])
def test_adapters_act_on_quantized_weights(
    adapter: MadeAdapter, tiny_f32: Path, score: Score, tmp_path: Path, safe_kernels: bool
) -> None:
    """Also where the CPU's kernels have repacked the weights."""
    from qwen_edge import load
    from qwen_edge.quantize import quantize_file

    target = tmp_path / "q8.gguf"
    quantize_file(tiny_f32, target, "Q8_0")
    logits = []
    for adapters in ([], [_gguf(adapter, tmp_path)]):
        with load(target, n_ctx=64, n_threads=1, safe_kernels=safe_kernels, adapters=adapters) as model:
            logits.append(model.engine.score(list(range(100, 140))))
    with load(_merged(tmp_path, [adapter.folder]), n_ctx=64, n_threads=1, safe_kernels=False) as model:
        exact = model.engine.score(list(range(100, 140)))
    assert _difference(logits[1], exact) < 0.2 * _difference(logits[0], exact)
