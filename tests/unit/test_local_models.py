"""What of a model is found in the two caches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen_edge import paths
from qwen_edge.catalog import MODELS
from qwen_edge.local_models import find_local, hugging_face_cache

QWEN3 = MODELS["qwen3-0.6b"]


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def snapshot(repository: str) -> Path:
    return hugging_face_cache() / f"models--{repository.replace('/', '--')}" / "snapshots" / "c0ffee"


def test_nothing_is_here() -> None:
    assert find_local(QWEN3) == ()


@pytest.mark.parametrize(
    ("name", "type_name"),
    [
        ("qwen3-0.6b-Q4_0.gguf", "Q4_0"),
        ("Qwen3-0.6B.Q8_0.gguf", "Q8_0"),
        ("sub/folder/qwen3-0.6b-q4_k_m.gguf", "Q4_K_M"),
        ("qwen3-0.6b.gguf", None),
    ],
)
def test_files_of_this_library(name: str, type_name: str | None) -> None:
    path = put(paths.models_folder() / name)
    (found,) = find_local(QWEN3)
    assert (found.path, found.type_name, found.is_checkpoint) == (path, type_name, False)


@pytest.mark.parametrize(
    "name",
    ["qwen3-0.6b-base-Q4_0.gguf", "my-qwen3-0.6b-Q4_0.gguf", "qwen3-0.6b-Q4_0.gguf.part", "notes.gguf"],
)
def test_files_of_others_are_left_alone(name: str) -> None:
    put(paths.models_folder() / name)
    assert find_local(QWEN3) == ()


def test_the_file_from_the_wheels_is_found() -> None:
    model = MODELS["qwen2.5-coder-0.5b"]
    put(paths.models_folder() / model.file_name)
    assert [found.type_name for found in find_local(model)] == ["Q4_K_M"]
    assert find_local(MODELS["qwen2.5-0.5b"]) == ()


def test_the_hugging_face_cache() -> None:
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


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "/a")
    assert hugging_face_cache() == Path("/a")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", "/b")
    assert hugging_face_cache() == Path("/b/hub")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert hugging_face_cache() == Path("/c/huggingface/hub")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hugging_face_cache() == Path.home() / ".cache/huggingface/hub"
