from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
EXPECTED = {"chat.py": "prompt tokens were cached", "tools.py": "call: get_weather {'city': 'Vienna'}"}


def test_every_example_is_expected() -> None:
    assert {path.name for path in EXAMPLES} == set(EXPECTED)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_and_is_short(path: Path, tiny_bf16: Path) -> None:
    result = subprocess.run([sys.executable, path, tiny_bf16], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert EXPECTED[path.name] in result.stdout
    assert len(path.read_text().splitlines()) < 60
