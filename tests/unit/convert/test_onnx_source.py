"""An exported F32 or F16 folder as the source of another export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qwen_edge.convert import GraphForm, OnnxPrecision, export_onnx
from qwen_edge.convert.checkpoint import open_checkpoint
from qwen_edge.convert.onnx_source import is_onnx_folder, open_onnx_folder
from qwen_edge.convert.rows import read_tensor
from qwen_edge.errors import CheckpointError, FormatError, UnsupportedError
from qwen_edge.manifest import FileRecord, Manifest, Origin, read_manifest, write_manifest
from tests import synthetic
from tests.adapters import write_adapter
from tests.golden.checkpoints import CHECKPOINTS


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files but the manifest, which names its inputs."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "qwen3-untied", "qwen2-biased", "qwen3-yarn"])
def test_f32_gives_the_bytes_that_the_checkpoint_gives(name: str, is_plain: bool, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS[name](tmp_path / "c")
    export_onnx(checkpoint, tmp_path / "f32", form=GraphForm(plain=is_plain))
    for precision in (
        OnnxPrecision(weights="int4", symmetric=False, rounding="search"),
        OnnxPrecision(weights="int8", head="f16"),
        OnnxPrecision(),
    ):
        export_onnx(checkpoint, tmp_path / "direct", precision=precision, replace=True)
        export_onnx(tmp_path / "f32", tmp_path / "twice", precision=precision, replace=True)
        assert contents(tmp_path / "twice") == contents(tmp_path / "direct")


def test_adapters_merge_into_an_exported_folder_as_into_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["qwen3"](tmp_path / "c")
    adapter = tmp_path / "adapter"
    write_adapter(adapter, checkpoint)
    export_onnx(checkpoint, tmp_path / "f32")
    export_onnx(checkpoint, tmp_path / "direct", adapters=[adapter])
    export_onnx(tmp_path / "f32", tmp_path / "twice", adapters=[adapter])
    assert contents(tmp_path / "twice") == contents(tmp_path / "direct")
    assert contents(tmp_path / "direct")["model.onnx.data"] != contents(tmp_path / "f32")["model.onnx.data"]


def test_the_origin_is_handed_on(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["qwen3"](tmp_path / "c")
    origin = Origin(kind="huggingface", location="Qwen/Tiny", revision="0" * 40)
    record = FileRecord.of(checkpoint / "model.safetensors", checkpoint)
    write_manifest(
        checkpoint, Manifest(action="pull", artefact=None, origin=origin, inputs=(record,), settings={})
    )
    export_onnx(checkpoint, tmp_path / "f32")
    export_onnx(tmp_path / "f32", tmp_path / "int4", precision=OnnxPrecision(weights="int4"))
    manifest = read_manifest(tmp_path / "int4")
    assert manifest is not None
    assert manifest.origin == origin
    assert {record.name for record in manifest.inputs} >= {"model.onnx.data", "config.json", "tokenizer.json"}


@pytest.mark.parametrize(("weights", "dtype"), [("f32", "F32"), ("f16", "F16")])
def test_tensors_are_those_of_the_checkpoint(weights: Any, dtype: str, tmp_path: Path) -> None:
    folder = CHECKPOINTS["qwen3-heads"](tmp_path / "c")
    export_onnx(folder, tmp_path / "o", precision=OnnxPrecision(weights=weights))
    expected = {name.removeprefix("model."): entry for name, entry in open_checkpoint(folder).tensors.items()}
    found = open_onnx_folder(tmp_path / "o").tensors
    assert found.keys() == expected.keys() - {"lm_head.weight"}
    for name, entry in found.items():
        values = read_tensor(expected[name])
        is_matrix = values.ndim == 2
        assert entry.dtype == (dtype if is_matrix else "F32")
        as_stored = values.astype(np.float16 if is_matrix and dtype == "F16" else np.float32)
        np.testing.assert_array_equal(read_tensor(entry), as_stored)


def test_an_embedding_of_its_own_is_taken_for_the_embedding(tmp_path: Path) -> None:
    folder = synthetic.write_checkpoint(tmp_path / "c", dtype="F32")
    export_onnx(folder, tmp_path / "o", precision=OnnxPrecision(head="f16", embedding="f32"))
    embedding = open_onnx_folder(tmp_path / "o").tensors["embed_tokens.weight"]
    assert embedding.dtype == "F32"


@pytest.mark.parametrize("precision", [{"weights": "int4"}, {"head": "int8"}, {"embedding": "int4"}])
def test_quantized_folders_are_refused_with_what_to_do(
    checkpoint: Path, tmp_path: Path, precision: dict[str, Any]
) -> None:
    export_onnx(checkpoint, tmp_path / "o", precision=OnnxPrecision(**precision))
    with pytest.raises(UnsupportedError, match="rounding cannot be undone") as caught:
        export_onnx(tmp_path / "o", tmp_path / "again")
    assert "Start from the checkpoint" in (caught.value.hint or "")
    assert not (tmp_path / "again").exists()


def test_other_programs_models_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "o"
    folder.mkdir()
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    onnx.save(helper.make_model(helper.make_graph([], "g", [value], [value])), folder / "model.onnx")
    with pytest.raises(UnsupportedError, match="was not exported by qwen-edge"):
        export_onnx(folder, tmp_path / "again")


def _cut_data(folder: Path) -> None:
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-5000])


def _cut_graph(folder: Path) -> None:
    graph = folder / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-50])


def _other_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}))


def _more_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


def _edited(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        change(model)
        onnx.save(model, folder / "model.onnx")

    return edit


def _external(key: str, value: str) -> Callable[[Path], None]:
    def change(model: Any) -> None:
        tensor = next(each for each in model.graph.initializer if each.data_location == TensorProto.EXTERNAL)
        for each in tensor.external_data:
            if each.key == key:
                each.value = value

    return _edited(change)


def _broken_facts(model: Any) -> None:
    model.metadata_props[0].value = "[1"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut_data, "places"),
        (_cut_graph, "not an ONNX model, or is cut off"),
        (_other_config, "config.json asks for"),
        (_more_layers, "has no tensor"),
        (_external("offset", "-64"), "places"),
        (_external("offset", "x"), "places"),
        (_external("length", "9" * 30), "places"),
        (_external("location", "../secret"), "places"),
        (_edited(_broken_facts), "expected an object"),
    ],
)
def test_damage_is_named(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    export_onnx(checkpoint, tmp_path / "o")
    damage(tmp_path / "o")
    with pytest.raises(CheckpointError, match=message):
        open_onnx_folder(tmp_path / "o")


def test_a_missing_data_file_is_an_error_of_the_file(checkpoint: Path, tmp_path: Path) -> None:
    export_onnx(checkpoint, tmp_path / "o")
    (tmp_path / "o" / "model.onnx.data").unlink()
    with pytest.raises((FormatError, FileNotFoundError), match=r"model\.onnx\.data"):
        open_onnx_folder(tmp_path / "o")


def test_a_checkpoint_with_a_graph_beside_it_stays_a_checkpoint(checkpoint: Path) -> None:
    (checkpoint / "model.onnx").write_bytes(b"")
    assert not is_onnx_folder(checkpoint)
