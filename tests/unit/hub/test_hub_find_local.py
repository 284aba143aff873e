"""What of a model is found in the two caches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen_edge import paths
from qwen_edge.catalog import MODELS
from qwen_edge.hub.hf_settings import cache_folder
from qwen_edge.hub.local import find_local

QWEN3 = MODELS["qwen3-0.6b"]


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def snapshot(repository: str) -> Path:
    return cache_folder() / f"models--{repository.replace('/', '--')}" / "snapshots" / "c0ffee"


def test_nothing_is_here() -> None:
    assert find_local(QWEN3) == ()


def test_the_file_from_the_wheels_is_found() -> None:
    model = MODELS["qwen2.5-coder-0.5b"]
    put(paths.models_folder() / model.file_name)
    assert [found.type_name for found in find_local(model)] == ["Q4_K_M"]
    assert find_local(MODELS["qwen2.5-0.5b"]) == ()


def test_the_cache_folder() -> None:
    gguf = put(snapshot("Qwen/Qwen3-0.6B-GGUF") / "Qwen3-0.6B-Q8_0.gguf")
    folder = put(snapshot("Qwen/Qwen3-0.6B") / "config.json").parent
    put(folder / "model.safetensors")
    put(snapshot("someone/Qwen3-0.6B") / "Qwen3-0.6B-Q8_0.gguf")
    assert [(found.path, found.is_checkpoint) for found in find_local(QWEN3)] == [
        (gguf, False),
        (folder, True),
    ]


@pytest.mark.parametrize(
    "index", [None, "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": [1]}']
)
def test_a_checkpoint_without_all_its_weights_is_not_here(index: str | None) -> None:
    folder = put(snapshot("Qwen/Qwen3-0.6B") / "config.json").parent
    if index is not None:
        put(folder / "model.safetensors.index.json", index)
    assert find_local(QWEN3) == ()


def test_a_download_that_stopped_between_shards_is_not_here() -> None:
    folder = put(snapshot("Qwen/Qwen3-0.6B") / "config.json").parent
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    put(folder / "model.safetensors.index.json", json.dumps({"weight_map": shards}))
    put(folder / "model-1.safetensors")
    # The hub's cache links to blobs; the second one was never finished.
    (folder / "model-2.safetensors").symlink_to(folder / "blob")
    assert find_local(QWEN3) == ()
    put(folder / "blob")
    assert [found.path for found in find_local(QWEN3)] == [folder]
