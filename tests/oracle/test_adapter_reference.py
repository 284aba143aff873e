"""Our merged weights and GGUF adapters against those of other programs (see adapter_reference.py for what it needs)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.convert import convert_adapter
from qwen_edge.convert.adapter_merge import MergedTensor, apply_adapters
from qwen_edge.convert.checkpoint import open_checkpoint
from tests.adapters import ALL_LINEAR, write_adapter
from tests.oracle import adapter_reference
from tests.oracle.convert_reference import PYTHON_VARIABLE, compare_files, is_available
from tests.synthetic import TINY_QWEN3

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(
        PYTHON_VARIABLE not in os.environ, reason="the environment names no Python with torch"
    ),
]
needs_peft = pytest.mark.skipif(not adapter_reference.has_peft(), reason="that Python has no peft")

Record = Callable[[str, object], None]
Tensors = dict[str, np.ndarray[Any, Any]]

# Weights are up to about 1; float32 sums in another order.
TOLERANCE = 1e-6

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora-rslora": {"use_dora": True, "use_rslora": True},
}
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"down_proj": 8, r"layers\.[0-2]\.self_attn\.q_proj": 2},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 32, "^model.layers.5.mlp.down_proj": 3},
}


def _max_difference(adapters: list[Path], reference: Tensors) -> float:
    merged = apply_adapters(open_checkpoint(TINY_QWEN3), adapters)
    ours = {name: tensor for name, tensor in merged.tensors.items() if isinstance(tensor, MergedTensor)}
    assert ours.keys() == reference.keys()
    return max(
        float(
            np.abs(
                np.frombuffer(b"".join(tensor.read_pieces(1 << 20)), "<f4") - reference[name].ravel()
            ).max()
        )
        for name, tensor in ours.items()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_those_of_torch(tmp_path: Path, kind: str, record_property: Record) -> None:
    made = write_adapter(
        tmp_path / kind, TINY_QWEN3, strength=0.05, target_modules=list(ALL_LINEAR), **KINDS[kind]
    )
    reference = adapter_reference.merge_with_torch(TINY_QWEN3, made.folder, tmp_path / "m.safetensors")
    assert len(reference) == 42
    difference = _max_difference([made.folder], reference)
    record_property("max_difference", difference)
    assert difference < TOLERANCE


@needs_peft
@pytest.mark.parametrize("kind", KINDS)
def test_peft_merges_its_own_adapters_alike(tmp_path: Path, kind: str, record_property: Record) -> None:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **PATTERNS}
    folder = adapter_reference.make_with_peft(TINY_QWEN3, tmp_path / kind, **settings, **KINDS[kind])
    reference = adapter_reference.merge_with_peft(TINY_QWEN3, [folder], tmp_path / "m.safetensors")
    assert len(reference) == 18
    difference = _max_difference([folder], reference)
    record_property("max_difference", difference)
    assert difference < TOLERANCE


@needs_peft
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_peft_reads_the_adapters_of_these_tests_alike(
    tmp_path: Path, kind: str, dtype: str, record_property: Record
) -> None:
    made = write_adapter(tmp_path / kind, TINY_QWEN3, strength=0.05, dtype=dtype, **KINDS[kind])
    reference = adapter_reference.merge_with_peft(TINY_QWEN3, [made.folder], tmp_path / "m.safetensors")
    difference = _max_difference([made.folder], reference)
    record_property("max_difference", difference)
    assert difference < TOLERANCE


@needs_peft
@pytest.mark.parametrize("kinds", [("lora", "rslora"), ("lora", "dora"), ("dora", "dora-rslora")])
def test_peft_merges_several_adapters_alike(
    tmp_path: Path, kinds: tuple[str, str], record_property: Record
) -> None:
    folders = [
        write_adapter(tmp_path / kind, TINY_QWEN3, strength=0.05, seed=seed, **KINDS[kind]).folder
        for seed, kind in enumerate(kinds)
    ]
    reference = adapter_reference.merge_with_peft(TINY_QWEN3, folders, tmp_path / "m.safetensors")
    difference = _max_difference(folders, reference)
    record_property("max_difference", difference)
    assert difference < TOLERANCE


@pytest.mark.skipif(not is_available(), reason="llama.cpp's converter is not named by the environment")
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_tensors_of_a_gguf_adapter_are_those_of_llama_cpp(tmp_path: Path, dtype: Any) -> None:
    made = write_adapter(tmp_path / "Tiny-Adapter", TINY_QWEN3, target_modules=list(ALL_LINEAR))
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    convert_adapter(made.folder, TINY_QWEN3, ours, dtype=dtype)
    adapter_reference.convert_with_llama_cpp(made.folder, TINY_QWEN3, theirs, dtype)
    result = compare_files(ours, theirs)
    assert result["tensors_equal"] == 84
    assert result["tensor_differences"] == {}
    # llama.cpp's converter spells the name of the folder in words of its own.
    assert result["key_differences"].keys() <= {"general.name"}
