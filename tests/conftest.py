"""Every test has caches of its own, and none reaches a hub."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from qwen_edge import paths

# The builds of llama.cpp are those of the machine: every test has another cache.
os.environ.setdefault("QWEN_EDGE_NATIVE", str(paths.cache_root() / "native"))

settings.register_profile("thorough", max_examples=2000, deadline=None)
# Instructions of another processor are translated as they come: the first call of anything is slow.
settings.register_profile(
    "emulated", max_examples=10, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)

# A shell starts its background jobs with Ctrl-C ignored, and programs hand that on to those they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# huggingface_hub reads these once, at its first import: that may be while tests are collected.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    caches = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches / "xdg"))
    monkeypatch.setenv("HF_HOME", str(caches / "huggingface"))
    # Read once too.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(caches / "huggingface" / "hub"))
    monkeypatch.setenv("QWEN_EDGE_CACHE", str(caches / "qwen-edge"))
    # COLUMNS: whoever starts the tests may tell the width of a terminal.
    for name in ("QWEN_EDGE_DEBUG", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return caches


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the fast tests first."""
    items.sort(key=lambda item: "unit" not in item.path.parts)
