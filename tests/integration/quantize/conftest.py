from __future__ import annotations

from pathlib import Path

import pytest

EVAL = Path(__file__).parents[3] / "examples" / "tiny-qwen3" / "eval"


@pytest.fixture(scope="session")
def eval_text() -> str:
    """Prose and code that the tiny model was not trained on: 75 windows of 512 tokens."""
    return "".join((EVAL / name).read_bytes().decode() for name in ("prose.txt", "code.txt"))
