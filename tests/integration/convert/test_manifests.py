"""The same inputs give the same bytes, and the manifests say which inputs they were."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from qwen_edge.convert import convert_checkpoint
from qwen_edge.manifest import Manifest, Origin, manifest_path, read_manifest, write_manifest
from qwen_edge.quantize import quantize_file
from tests import synthetic
from tests.adapters import write_adapter


def _manifest(path: Path) -> Manifest:
    manifest = read_manifest(path)
    assert manifest is not None
    return manifest


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        shutil.copytree(synthetic.TINY_QWEN3, folder / "tiny-qwen3")
        report = convert_checkpoint(folder / "tiny-qwen3", folder / "m.gguf")
        quantized = quantize_file(folder / "m.gguf", folder / "q.gguf", "Q4_K_M", n_threads=1)
        made.append([path.read_bytes() for path in sorted(folder.glob("*.gguf*"))])
        assert report.sha256 == hashlib.sha256((folder / "m.gguf").read_bytes()).hexdigest()
        assert quantized.sha256 == hashlib.sha256((folder / "q.gguf").read_bytes()).hexdigest()
    assert len(made[0]) == 4, "two files and two manifests"
    assert made[0] == made[1]


def test_threads_do_not_change_the_bytes(tiny_bf16: Path, tmp_path: Path) -> None:
    digests = {
        quantize_file(tiny_bf16, tmp_path / f"{n}.gguf", "Q4_K_M", n_threads=n).sha256 for n in (1, 2, 3)
    }
    assert len(digests) == 1


def test_a_manifest_says_what_went_in(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", synthetic.TINY_QWEN3, seed=1)
    path = tmp_path / "m.gguf"
    report = convert_checkpoint(synthetic.TINY_QWEN3, path, dtype="f16", adapters=[(adapter.folder, 0.5)])
    manifest = _manifest(path)
    assert manifest.action == "convert"
    assert manifest.artefact is not None
    assert (manifest.artefact.name, manifest.artefact.sha256) == ("m.gguf", report.sha256)
    assert manifest.settings == {
        "dtype": "f16",
        "reranker": False,
        "adapters": [{"name": "adapter", "scale": 0.5}],
    }
    digests = {record.name: record.sha256 for record in manifest.inputs}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} < digests.keys()
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} < digests.keys()
    weights = synthetic.TINY_QWEN3 / "model.safetensors"
    assert digests["model.safetensors"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert manifest.tools.keys() == {"qwen-edge", "gguf", "numpy"}
    assert str(tmp_path) not in manifest_path(path).read_text()


def test_the_origin_is_handed_on(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--Qwen--Qwen3-Tiny" / "snapshots" / ("a1" * 20)
    shutil.copytree(synthetic.TINY_QWEN3, snapshot)
    source = convert_checkpoint(snapshot, tmp_path / "m.gguf").path
    quantize_file(source, tmp_path / "q.gguf", "Q8_0", n_threads=1)
    origin = Origin(kind="huggingface", location="Qwen/Qwen3-Tiny", revision="a1" * 20)
    assert _manifest(source).origin == origin
    assert _manifest(tmp_path / "q.gguf").origin == origin
    # What was put in its place since is another file.
    source.write_bytes(source.read_bytes() + bytes(32))
    quantize_file(source, tmp_path / "q.gguf", "Q8_0", n_threads=1, overwrite=True)
    assert _manifest(tmp_path / "q.gguf").origin == Origin(kind="local")


def test_a_manifest_of_an_older_file_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    old = json.loads(convert_checkpoint(synthetic.TINY_QWEN3, path, dtype="f16").manifest.read_text())
    assert old["settings"]["dtype"] == "f16"
    manifest = _manifest(path)
    convert_checkpoint(synthetic.TINY_QWEN3, path, dtype="bf16")
    assert _manifest(path).settings["dtype"] == "bf16"
    write_manifest(path, manifest)
    quantize_file(
        convert_checkpoint(synthetic.TINY_QWEN3, tmp_path / "s.gguf").path, path, "Q8_0", overwrite=True
    )
    assert _manifest(path).action == "quantize"
