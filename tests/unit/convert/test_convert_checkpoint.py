from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.convert.checkpoint import INDEX_NAME, checkpoint_name, open_checkpoint
from qwen_edge.errors import CheckpointError, ModelNotFoundError, QwenEdgeError, UnsupportedError
from tests import synthetic

# A loaded machine is no failure.
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _sharded(folder: Path) -> Path:
    return synthetic.write_checkpoint(folder, n_shards=2)


def _edit_index(folder: Path, change: Any) -> None:
    path = folder / INDEX_NAME
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_a_folder_a_file_and_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    one = synthetic.write_checkpoint(tmp_path / "one")
    expected = synthetic.tensor_shapes(synthetic.TINY)
    for source in (one, one / "model.safetensors", _sharded(tmp_path / "two")):
        opened = open_checkpoint(source)
        assert {name: entry.shape for name, entry in opened.tensors.items()} == expected
        assert opened.config["hidden_size"] == synthetic.TINY.hidden
    assert len(opened.weight_files) == 2


def test_shards_are_found_without_an_index(tmp_path: Path) -> None:
    folder = _sharded(tmp_path / "c")
    (folder / INDEX_NAME).unlink()
    assert len(open_checkpoint(folder).tensors) == len(synthetic.tensor_shapes(synthetic.TINY))


def test_the_folder_of_a_relative_path_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(synthetic.write_checkpoint(tmp_path / "Tiny"))
    assert open_checkpoint(".").folder.name == "Tiny"


def test_a_model_in_a_hub_cache_has_the_name_of_the_model(tmp_path: Path) -> None:
    blobs = tmp_path / "models--Qwen--Qwen3-0.6B" / "blobs"
    snapshot = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(synthetic.write_checkpoint(blobs).iterdir()):
        digest = path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(digest)
    for source in (snapshot, snapshot / "model.safetensors"):
        opened = open_checkpoint(source)
        assert opened.name == checkpoint_name(source) == "Qwen3-0.6B"
        assert opened.tensors.keys() == synthetic.tensor_shapes(synthetic.TINY).keys()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"Qwen/Qwen3-0\.6B") as raised:
        open_checkpoint("Qwen/Qwen3-0.6B")
    assert "hf download" in str(raised.value.hint)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        open_checkpoint(tmp_path)


def test_a_checkpoint_without_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_as_folder_and_as_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(UnsupportedError, match=f"{name} is a PyTorch pickle") as raised:
            open_checkpoint(source)
        assert "safetensors" in str(raised.value.hint)


def test_gguf_is_not_converted_again(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError, match="GGUF file already"):
        open_checkpoint(tmp_path / "m.gguf")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(UnsupportedError, match=r"neither a folder nor a \.safetensors file"):
        open_checkpoint(tmp_path / "weights.npz")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = _sharded(tmp_path / "c")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing from .*: model-00002-of-00002\.safetensors"):
        open_checkpoint(folder)


def test_the_index_lists_a_tensor_that_is_nowhere(tmp_path: Path) -> None:
    folder = _sharded(tmp_path / "c")
    _edit_index(folder, lambda weight_map: weight_map.update(ghost="model-00001-of-00002.safetensors"))
    with pytest.raises(CheckpointError, match=r"'ghost' in model-00001.* in none of the shards"):
        open_checkpoint(folder)


def test_the_index_places_a_tensor_in_the_wrong_shard(tmp_path: Path) -> None:
    folder = _sharded(tmp_path / "c")
    wrong = {"model.norm.weight": "model-00001-of-00002.safetensors"}
    _edit_index(folder, lambda weight_map: weight_map.update(wrong))
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' in model-00001.* it is in model-00002"):
        open_checkpoint(folder)


def test_a_shard_holds_a_tensor_that_the_index_does_not_list(tmp_path: Path) -> None:
    folder = _sharded(tmp_path / "c")
    _edit_index(folder, lambda weight_map: weight_map.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"model-00002.* holds 'model.norm.weight'"):
        open_checkpoint(folder)


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = synthetic.write_checkpoint(tmp_path / "c")
    synthetic.write_safetensors(
        folder / "model-extra.safetensors", {"model.norm.weight": (synthetic.TINY.hidden,)}
    )
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' is in two files") as raised:
        open_checkpoint(folder)
    assert "model-extra.safetensors" in str(raised.value)


@pytest.mark.parametrize(
    "shard", ["../other/model.safetensors", "/etc/passwd", "model.bin", "a\0.safetensors", 5, None, "x" * 300]
)
def test_the_index_cannot_lead_out_of_the_folder(tmp_path: Path, shard: Any) -> None:
    folder = _sharded(tmp_path / "c")
    _edit_index(folder, lambda weight_map: weight_map.update({"model.norm.weight": shard}))
    with pytest.raises(CheckpointError, match=r"places 'model\.norm\.weight'"):
        open_checkpoint(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _sharded(tmp_path_factory.mktemp("index") / "c")


@patiently
@given(index=json_values | st.fixed_dictionaries({"weight_map": json_values}))
def test_any_json_index_ends_in_our_error(sharded: Path, index: Any) -> None:
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(QwenEdgeError):
        open_checkpoint(sharded)


@patiently
@given(content=st.binary(max_size=100))
def test_any_index_bytes_end_in_our_error(sharded: Path, content: bytes) -> None:
    (sharded / INDEX_NAME).write_bytes(content)
    with pytest.raises(QwenEdgeError):
        open_checkpoint(sharded)


@patiently
@given(
    names=st.dictionaries(
        st.text(max_size=8), st.text(max_size=12).map(lambda name: f"{name}.safetensors"), min_size=1
    )
)
def test_any_weight_map_ends_in_our_error(sharded: Path, names: dict[str, str]) -> None:
    (sharded / INDEX_NAME).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(QwenEdgeError):
        open_checkpoint(sharded)
