"""The tiny model as ONNX folders of several precisions, and copies that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qwen_edge.convert import OnnxPrecision, export_onnx

CHECKPOINT = Path(__file__).parents[3] / "examples" / "tiny-qwen3"


@pytest.fixture(scope="session")
def tiny_int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/tiny-qwen3 with its weights in blocks of 4 bits."""
    folder = tmp_path_factory.mktemp("onnx") / "tiny-int4"
    export_onnx(CHECKPOINT, folder, precision=OnnxPrecision(weights="int4"))
    return folder


@pytest.fixture
def folder(tiny_onnx: Path, tmp_path: Path) -> Path:
    """A copy of the folder in F32 that a test may change."""
    return Path(shutil.copytree(tiny_onnx, tmp_path / "model"))
