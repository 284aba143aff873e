"""A roofline of a real file, measured for a moment."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from qwen_edge.bench.roofline import main


def test_a_file_is_measured(tiny_bf16: Path) -> None:
    arguments = [
        "--file",
        str(tiny_bf16),
        "--n-threads",
        "1",
        "--turns",
        "1",
        "--n-prompt",
        "20",
        "--depth",
        "30",
    ]
    result = CliRunner().invoke(main, [*arguments, "--format", "json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["type"] == "BF16"
    assert row["bits_per_weight"] > 15
    assert row["file_bytes"] == tiny_bf16.stat().st_size > row["read_bytes"]
    (turn,) = row["turns"]
    assert all(value > 0 for value in turn.values())
    assert row["decode_share"] > 0
