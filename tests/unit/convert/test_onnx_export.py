"""What an export leaves on disk: layout, graph, side files, and what a failure leaves."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from qwen_edge.convert import GraphForm, OnnxPrecision, export_onnx
from qwen_edge.errors import ConfigError, UnsupportedError
from qwen_edge.manifest import read_manifest
from tests import synthetic

FIXED = {"batch": 1, "tokens": 8, "past": 16}
FORMS = {"fused": GraphForm(), "plain": GraphForm(plain=True), "fixed": GraphForm(plain=True, fixed=FIXED)}
TYPES = ("f32", "f16", "int8", "int4")
# Says so when half is written, then waits to be killed.
STOP_HALF_WAY = """
import sys, time
from qwen_edge.convert import export_onnx
def stop_half_way(done, total):
    if done >= total / 2:
        print("half", flush=True)
        time.sleep(60)
export_onnx(sys.argv[1], sys.argv[2], replace=True, progress=stop_half_way)
"""


def graph_of(folder: Path) -> Any:
    return onnx.load(folder / "model.onnx", load_external_data=False)


def places(folder: Path) -> dict[str, tuple[int, int]]:
    """Return (offset, length) of each initializer that lies in the data file."""
    found = {}
    for tensor in graph_of(folder).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {each.key: each.value for each in tensor.external_data}
            assert where["location"] == "model.onnx.data"
            found[tensor.name] = int(where["offset"]), int(where["length"])
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("weights", TYPES)
@pytest.mark.parametrize("form", FORMS)
def test_tensors_are_aligned_and_do_not_overlap(
    checkpoint: Path, tmp_path: Path, form: str, weights: Any, symmetric: bool
) -> None:
    precision = OnnxPrecision(weights=weights, symmetric=symmetric)
    export_onnx(checkpoint, tmp_path / "o", precision=precision, form=FORMS[form])
    spans = sorted(set(places(tmp_path / "o").values()))
    end = 0
    for offset, length in spans:
        assert offset % 64 == 0
        assert 0 <= offset - end < 64, "tensors overlap, or leave more than padding between them"
        end = offset + length
    assert (tmp_path / "o" / "model.onnx.data").stat().st_size == end


def test_large_tensors_begin_at_pages(tmp_path: Path) -> None:
    shape = replace(synthetic.TINY, vocab=9000, hidden=64)
    export_onnx(synthetic.write_checkpoint(tmp_path / "c", shape), tmp_path / "o")
    large = [offset for offset, length in places(tmp_path / "o").values() if length >= 1 << 20]
    assert large
    assert all(offset % 4096 == 0 for offset in large)


@pytest.mark.parametrize("weights", TYPES)
@pytest.mark.parametrize("form", FORMS)
def test_a_tied_embedding_is_stored_once_where_it_can_be(
    checkpoint: Path, tmp_path: Path, form: str, weights: Any
) -> None:
    report = export_onnx(
        checkpoint, tmp_path / "o", precision=OnnxPrecision(weights=weights, symmetric=True), form=FORMS[form]
    )
    whole = {
        name: place for name, place in places(tmp_path / "o").items() if "embed" in name or "head" in name
    }
    levels = {place for name, place in whole.items() if not name.endswith(("scales", "scales.f16"))}
    has_its_own = form != "fused" and weights == "int4"
    assert len(levels) == (2 if has_its_own else 1)
    assert (report.precision.type_of("embedding") == "int8") == (has_its_own or weights == "int8")


def test_an_untied_head_is_a_matrix_of_its_own(tmp_path: Path) -> None:
    folder = synthetic.write_checkpoint(tmp_path / "c", replace(synthetic.TINY, is_tied=False))
    precision = OnnxPrecision(weights="int4", head="int8", embedding="f16")
    export_onnx(folder, tmp_path / "o", precision=precision)
    found = places(tmp_path / "o")
    vocab, hidden = synthetic.TINY.vocab, synthetic.TINY.hidden
    assert found["embed_tokens.weight.f16"][1] == vocab * hidden * 2
    assert found["lm_head.levels"][1] == vocab * hidden


@pytest.mark.parametrize("weights", TYPES)
@pytest.mark.parametrize("form", FORMS)
def test_the_graph_passes_the_checker(checkpoint: Path, tmp_path: Path, form: str, weights: Any) -> None:
    precision = OnnxPrecision(weights=weights, symmetric=False)
    export_onnx(checkpoint, tmp_path / "o", precision=precision, form=FORMS[form])
    model = graph_of(tmp_path / "o")
    if form == "fused":
        # ONNX Runtime keeps this operator of its own under the standard's name; the checker knows the standard.
        for node in model.graph.node:
            if node.op_type == "SimplifiedLayerNormalization":
                node.domain = "com.microsoft"
        onnx.save(model, tmp_path / "o" / "model.onnx")
    else:
        assert {node.domain for node in model.graph.node} == {""}
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 21)]
    onnx.checker.check_model(str(tmp_path / "o" / "model.onnx"), full_check=True)
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))
    used = {name for node in model.graph.node for name in node.input}
    assert {each.name for each in model.graph.initializer} <= used, "nothing is stored that nobody reads"


@pytest.mark.parametrize("weights", TYPES)
@pytest.mark.parametrize(
    "shape", [synthetic.TINY, synthetic.as_qwen2(synthetic.TINY)], ids=["qwen3", "qwen2"]
)
def test_fixed_sizes_leave_no_open_dimension(tmp_path: Path, shape: synthetic.Shape, weights: Any) -> None:
    folder = synthetic.write_checkpoint(tmp_path / "c", shape)
    export_onnx(folder, tmp_path / "o", precision=OnnxPrecision(weights=weights), form=FORMS["fixed"])
    model = onnx.shape_inference.infer_shapes(graph_of(tmp_path / "o"), strict_mode=True, data_prop=True)
    values = {each.name: each for each in [*model.graph.value_info, *model.graph.input, *model.graph.output]}
    for node in model.graph.node:
        for name in node.output:
            sizes = values[name].type.tensor_type.shape.dim
            assert all(size.HasField("dim_value") for size in sizes), name
    assert [size.dim_value for size in values["present.0.key"].type.tensor_type.shape.dim] == [
        1,
        shape.kv_heads,
        FIXED["past"] + FIXED["tokens"],
        shape.head_dim,
    ]
    assert not list((tmp_path / "o").glob("*genai*")), "onnxruntime-genai is made for the other form"


@pytest.mark.parametrize("form", FORMS)
def test_equal_inputs_give_equal_bytes(checkpoint: Path, tmp_path: Path, form: str) -> None:
    precision = OnnxPrecision(weights="int4", symmetric=False)
    for name in ("a", "b"):
        export_onnx(checkpoint, tmp_path / name, precision=precision, form=FORMS[form])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_folder_is_complete(checkpoint: Path, tmp_path: Path) -> None:
    report = export_onnx(checkpoint, tmp_path / "o", precision=OnnxPrecision(weights="int8"))
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        "model.onnx", "model.genai.onnx", "model.onnx.data", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "genai_config.json", "manifest.json",
    }  # fmt: skip
    sizes = [(tmp_path / "o" / name).stat().st_size for name in ("model.onnx", "model.onnx.data")]
    assert report.size_bytes == sum(sizes)
    assert report.bits_per_weight == sum(sizes) * 8 / report.parameter_count
    manifest = read_manifest(tmp_path / "o")
    assert manifest is not None
    assert manifest.settings["form"] == {"plain": False, "fixed": None}
    assert manifest.settings["precision"]["weights"] == "int8"
    json.dumps(report.to_dict())


def test_genai_has_a_graph_of_its_own_with_the_logits_of_the_last_token(
    checkpoint: Path, tmp_path: Path
) -> None:
    export_onnx(checkpoint, tmp_path / "o")
    decoder = json.loads((tmp_path / "o" / "genai_config.json").read_text())["model"]["decoder"]
    graph = onnx.load(str(tmp_path / "o" / decoder["filename"]), load_external_data=False).graph
    names = {name.replace("%d", "0") for name in decoder["inputs"].values()}
    assert names == {each.name for each in graph.input if ".1." not in each.name}
    logits = next(each for each in graph.output if each.name == "logits")
    assert logits.type.tensor_type.shape.dim[1].dim_value == 1
    whole = onnx.load(str(tmp_path / "o" / "model.onnx"), load_external_data=False).graph
    assert graph.node == whole.node
    assert graph.initializer == whole.initializer


@pytest.mark.parametrize("has_old", [False, True])
def test_killed_half_way(checkpoint: Path, tmp_path: Path, has_old: bool) -> None:
    target = tmp_path / "out" / "o"
    target.parent.mkdir()
    if has_old:
        export_onnx(checkpoint, target, precision=OnnxPrecision(weights="int4"))
    old = contents(target) if has_old else None
    with subprocess.Popen(
        [sys.executable, "-c", STOP_HALF_WAY, str(checkpoint), str(target)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        child.kill()
    assert (contents(target) if target.exists() else None) == old
    assert len(list(target.parent.glob(".*.part"))) == 1
    export_onnx(checkpoint, target, replace=True)
    assert list(target.parent.iterdir()) == [target], "the next run clears what the killed one left"
    export_onnx(checkpoint, tmp_path / "again")
    assert contents(target) == contents(tmp_path / "again")


def test_a_disk_that_fills_up_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "o"
    result = subprocess.run(
        [sys.executable, "-m", "qwen_edge", "convert", str(checkpoint), "--to", "onnx", "-o", str(target)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert result.returncode == 1, result.stderr
    assert "files may not grow so large" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(target.parent.iterdir())


def test_a_disk_that_is_too_small_is_told_at_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 10**6))
    with pytest.raises(OSError, match="not enough disk space") as caught:
        export_onnx(checkpoint, tmp_path / "o")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("weights", ["f16", "int4", "int8"])
def test_a_weight_beyond_the_type_is_refused_and_nothing_left(tmp_path: Path, weights: Any) -> None:
    folder = synthetic.write_checkpoint(tmp_path / "c", dtype="F32", std=1e9)
    with pytest.raises(UnsupportedError, match="beyond the largest F16") as caught:
        export_onnx(folder, tmp_path / "out" / "o", precision=OnnxPrecision(weights=weights))
    assert "--weights f32" in (caught.value.hint or "")
    assert not list((tmp_path / "out").iterdir())


def test_targets_that_hold_something_else_are_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(ConfigError, match="the target"):
            export_onnx(checkpoint, tmp_path / name, replace=True)
    export_onnx(checkpoint, tmp_path / "o")
    with pytest.raises(ConfigError, match="exists already"):
        export_onnx(checkpoint, tmp_path / "o")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fixed": FIXED}, "plain graph"),
        ({"plain": True, "fixed": {"batch": 1}}, "fixed sizes are batch, tokens, past"),
        ({"plain": True, "fixed": FIXED | {"more": 1}}, "fixed sizes are"),
        ({"plain": True, "fixed": FIXED | {"past": 0}}, "past must be a whole number"),
        ({"plain": True, "fixed": FIXED | {"tokens": 1.5}}, "tokens must be a whole number"),
        ({"plain": True, "fixed": FIXED | {"batch": True}}, "batch must be a whole number"),
    ],
)
def test_forms_that_contradict_themselves_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GraphForm(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": "int3"}, {"head": "q4"}, {"embedding": ""}, {"rounding": "up"}, {"accuracy_level": 1},
        {"block_size": 16},
    ],
)  # fmt: skip
def test_precisions_that_do_not_exist_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        OnnxPrecision(**wrong)


def test_levels_of_accuracy_follow_the_path() -> None:
    precision = OnnxPrecision(weights="int4", exact=("lm_head", "layers.3.mlp.down_proj"))
    assert precision.level_of("/lm_head", 4) == 0
    assert precision.level_of("/model/layers.3.mlp.down_proj", 4) == 0
    assert precision.level_of("/model/layers.2.mlp.down_proj", 4) == 4
    assert precision.level_of("/lm_head", 8) == 4, "8 bits always take the fast one"
