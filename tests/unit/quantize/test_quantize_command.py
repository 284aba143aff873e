from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen_edge.cli.quantize import command, default_target
from qwen_edge.quant_types import FILE_TYPES


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("tiny-bf16.gguf", "tiny-Q4_0.gguf"),
        ("Qwen3-0.6B.gguf", "Qwen3-0.6B-Q4_0.gguf"),
        ("Qwen3-0.6B.Q8_0.gguf", "Qwen3-0.6B.Q4_0.gguf"),
        ("qwen2.5-coder-0.5b-q4_k_m.gguf", "qwen2.5-coder-0.5b-Q4_0.gguf"),
        ("f16.gguf", "f16-Q4_0.gguf"),
    ],
)
def test_default_name(source: str, target: str) -> None:
    assert default_target(Path("folder") / source, "Q4_0") == Path("folder") / target


def test_help_lists_every_type() -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    for row in FILE_TYPES.values():
        assert f"{row.name} " in text
    assert "IQ3_XS 3.438*" in text
    assert "Q4_K_M 4.5 " in text
