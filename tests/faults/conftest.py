from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # for tests.faults

from tests.faults.running import run_whole
from tests.faults.world import Stock


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """The whole files that are damaged."""
    return Stock(tmp_path_factory.mktemp("stock"), run_whole)
