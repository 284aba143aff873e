"""The estimate of a file's size against the quantizer's own plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import synthetic

from qwen_edge.catalog import Shape
from qwen_edge.convert import convert_checkpoint
from qwen_edge.memory import COMMON_TYPES, estimate_tensor_bytes
from qwen_edge.quantize import plan_quantization

# Layers such that the mixtures' rule for both ends and every third layer has something to decide; widths that are and
# are not multiples of 256, and of 32.
_WIDE = synthetic.Shape(
    layers=17, hidden=256, heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=600, context=512
)
SHAPES = {
    "wide": _WIDE,
    "untied": replace(_WIDE, layers=9, is_tied=False),
    "narrow": replace(_WIDE, layers=10, hidden=160, ffn=288, head_dim=32),
    "ffn alone divides": replace(_WIDE, layers=8, hidden=192, heads=6, head_dim=32),
    "odd": replace(_WIDE, layers=3, hidden=40, heads=2, kv_heads=1, head_dim=20, ffn=56),
    "qwen2": synthetic.as_qwen2(replace(_WIDE, layers=12)),
    "qwen2 untied": synthetic.as_qwen2(
        replace(_WIDE, layers=5, hidden=224, heads=7, kv_heads=1, is_tied=False)
    ),
}
MORE_TYPES = ("F16", "Q5_0", "Q4_1", "Q5_K_S")


@pytest.fixture(scope="module", params=SHAPES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shape]:
    """A BF16 file with random weights, and the shape that the catalog would have for it."""
    sizes = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    target = folder / "model.gguf"
    convert_checkpoint(synthetic.write_checkpoint(folder / "source", sizes), target)
    shape = Shape(
        n_layers=sizes.layers,
        hidden_size=sizes.hidden,
        ffn_size=sizes.ffn,
        n_heads=sizes.heads,
        n_kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        vocab_size=sizes.vocab,
        is_tied=sizes.is_tied,
        has_qkv_bias=sizes.is_qwen2,
        has_qk_norm=not sizes.is_qwen2,
    )
    return target, shape


def test_files_differ_by_what_the_quantizer_plans(made: tuple[Path, Shape]) -> None:
    source, shape = made
    plans = {type_name: plan_quantization(source, type_name) for type_name in (*COMMON_TYPES, *MORE_TYPES)}
    # To the byte, padding included. What is left out is the header, which does not depend on the type.
    header_bytes = plans["BF16"].predicted_bytes - estimate_tensor_bytes(shape, "BF16")
    assert header_bytes > 0
    for type_name, plan in plans.items():
        assert plan.n_params == shape.n_weights
        assert plan.predicted_bytes - header_bytes == estimate_tensor_bytes(shape, type_name), type_name
