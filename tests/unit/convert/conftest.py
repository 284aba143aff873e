from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[3]))  # for tests.synthetic

from tests import synthetic


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny Qwen3 checkpoint with a tied head that is stored once."""
    return synthetic.write_checkpoint(tmp_path / "Tiny-Qwen3")
