"""Greedy tokens against those that transformers generates from the same checkpoint (tests/golden)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_edge import Message, Model, load
from qwen_edge.convert import OnnxPrecision, convert_checkpoint, export_onnx
from tests.greedy import greedy

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "greedy_tokens.json").read_text())
CHECKPOINT = Path(__file__).parents[3] / "examples" / "tiny-qwen3"


def first_differences(model: Model) -> list[tuple[int, int, float]]:
    """Return (prompt, step, gap of the reference there) of each prompt that does not agree to its end."""
    found = []
    for i, entry in enumerate(GOLDEN["entries"]):
        tokens = greedy(model, entry["prompt_tokens"], GOLDEN["max_tokens"])
        step = next(
            (k for k, (a, b) in enumerate(zip(tokens, entry["tokens"], strict=False)) if a != b), None
        )
        if step is not None:
            found.append((i, step, entry["gaps"][step]))
        else:
            assert len(tokens) == len(entry["tokens"])
    return found


def test_prompts_are_rendered_and_tokenized_alike(tiny_model: Model) -> None:
    assert len(GOLDEN["entries"]) == 50
    for entry in GOLDEN["entries"]:
        messages = [Message.from_dict(message) for message in entry["messages"]]
        text = tiny_model.template.render(
            messages, tools=entry.get("tools", ()), enable_thinking=entry["thinking"]
        )
        assert tiny_model.engine.tokenize(text) == entry["prompt_tokens"]


# The widest gap between the two best logits at which this arithmetic may choose the other: F32 differs in the order of
# sums only; in BF16 llama.cpp rounds the activations of every product to 8 bits of mantissa.
@pytest.mark.parametrize(
    ("engine", "dtype", "widest_gap"),
    [("gguf", "f32", 0.001), ("gguf", "bf16", 0.15), ("onnx", "f32", 0.001), ("onnx", "f16", 0.01)],
)
def test_greedy_tokens_equal_those_of_transformers(
    tmp_path: Path, engine: str, dtype: Any, widest_gap: float
) -> None:
    path = tmp_path / f"tiny-{dtype}.gguf"
    if engine == "gguf":
        convert_checkpoint(CHECKPOINT, path, dtype=dtype)
    else:
        export_onnx(CHECKPOINT, path, precision=OnnxPrecision(weights=dtype))
    with load(path, n_ctx=1024, n_threads=1, safe_kernels=False) as model:
        differences = first_differences(model)
    assert [d for d in differences if d[2] > widest_gap] == []
    assert len(differences) <= (0 if (engine, dtype) == ("onnx", "f32") else 3)
