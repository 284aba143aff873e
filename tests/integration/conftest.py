"""The tiny model as a GGUF file and as an ONNX folder, made once per run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_edge import Model, load
from qwen_edge.convert import convert_checkpoint, export_onnx

CHECKPOINT = Path(__file__).parents[2] / "examples" / "tiny-qwen3"


@pytest.fixture(scope="session")
def tiny_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/tiny-qwen3 as a BF16 GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "tiny-bf16.gguf"
    convert_checkpoint(CHECKPOINT, path, dtype="bf16")
    return path


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/tiny-qwen3 as an ONNX folder with its weights in F32."""
    folder = tmp_path_factory.mktemp("onnx") / "tiny-f32"
    export_onnx(CHECKPOINT, folder)
    return folder


@pytest.fixture(scope="session", params=["gguf", "onnx"])
def tiny_path(request: pytest.FixtureRequest) -> Path:
    """What to load, once for each engine: for tests of the assistant."""
    path: Path = request.getfixturevalue("tiny_bf16" if request.param == "gguf" else "tiny_onnx")
    return path


@pytest.fixture
def tiny_model(tiny_path: Path) -> Iterator[Model]:
    """The tiny model, with the fast kernels (the probe has tests of its own) and the one thread that suits it."""
    with load(tiny_path, n_ctx=2048, n_threads=1, safe_kernels=False) as model:
        yield model


@pytest.fixture(scope="session")
def eval_lines() -> Callable[[str], list[dict[str, Any]]]:
    """Read one of the tiny model's evaluation sets."""

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (CHECKPOINT / "eval" / name).read_text().splitlines()]

    return read
