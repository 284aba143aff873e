"""A hub on this machine, with a GGUF repository and a checkpoint on it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import constants

from qwen_edge.hub.web import Patience

GGUF = "tiny-Q8_0.gguf"
GGUF_REPOSITORY = "org/tiny-GGUF"
CHECKPOINT = "Qwen/Qwen3-0.6B"


def content(seed: str, size_bytes: int) -> bytes:
    """Return bytes that look like nothing else."""
    return random.Random(seed).randbytes(size_bytes)


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """The repositories."""
    folder = tmp_path / "hub"
    for repository, files in {
        GGUF_REPOSITORY: {GGUF: 200_000, "tiny-Q4_0.gguf": 1000, "README.md": 100},
        CHECKPOINT: {
            "model-00001-of-00002.safetensors": 120_000,
            "model-00002-of-00002.safetensors": 80_000,
            "pytorch_model.bin": 5000,
            "tokenizer.json": 9000,
            "LICENSE": 300,
            "onnx/model.safetensors": 100,
            "1_Pooling/config.json": 50,
            "modules.json": 40,
            "1_Pooling/deeper/config.json": 30,
        },
    }.items():
        for name, size_bytes in files.items():
            path = folder / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(name, size_bytes))
    (folder / CHECKPOINT / "config.json").write_text("{}")
    (folder / CHECKPOINT / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    return folder


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Return a function that leads both clients to an address."""

    def lead_to(endpoint: str) -> None:
        # huggingface_hub has read its environment already.
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "huggingface" / "hub"))
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", endpoint)

    return lead_to


@pytest.fixture
def hub_server(hub_folder: Path, online: Callable[[str], None]) -> Iterator[Hub]:
    """The hub, and clients that are led to it."""
    with Hub(hub_folder, licences={CHECKPOINT: "apache-2.0"}) as hub:
        online(hub.endpoint)
        yield hub


@pytest.fixture
def patience() -> Patience:
    """Short waits."""
    return Patience(timeout_s=4, tries=3, first_wait_s=0.001, longest_wait_s=0.1)
