"""Making a bundle: what is in it, and that it is whole or not there."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_edge import device
from qwen_edge.bundle import companions, papers, writing
from qwen_edge.bundle.file_checks import check_files
from qwen_edge.bundle.record import read_bundle
from qwen_edge.bundle.writing import BundleRequest, make_bundle
from qwen_edge.catalog import MODELS
from qwen_edge.config import LoadConfig
from qwen_edge.errors import (
    ConfigError,
    FormatError,
    ModelNotFoundError,
    NoSpaceError,
    UnsupportedError,
)
from qwen_edge.gguf_header import read_header
from qwen_edge.manifest import Origin, manifest_path
from qwen_edge.tuned import Settings, TuneRecord, Workload
from tests import synthetic
from tests.unit.bundle.conftest import Made

PLAIN = BundleRequest(load=LoadConfig(n_ctx=256))


def test_a_bundle_has_what_a_device_needs(made: Made) -> None:
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "LICENSE", "README.md", "SHA256SUMS", "bundle.json", "chat_template.jinja", "llama-rn.json",
        "requirements.lock", "tensors.json", "tiny.gguf", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert (made.folder / "tiny.gguf").read_bytes() == made.model.read_bytes()
    template = read_header(made.model).metadata["tokenizer.chat_template"]
    assert (made.folder / "chat_template.jinja").read_bytes().decode() == template
    assert (made.folder / "LICENSE").read_text() == "Do what you like.\n"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (made.folder / name).read_bytes() == (made.checkpoint / name).read_bytes()


def test_facts_of_the_model(made: Made) -> None:
    model, chat = made.bundle.model, made.bundle.chat
    header = read_header(made.model)
    assert (model.file, model.format, model.architecture, model.type) == (
        "tiny.gguf",
        "gguf",
        "qwen3",
        "BF16",
    )
    assert model.n_params == header.n_weights
    assert model.bits_per_weight == pytest.approx(8 * header.tensor_bytes / header.n_weights, abs=1e-3)
    assert (model.n_ctx_train, model.tokenizer) == (512, "tokenizer.json")
    assert (chat.thinking, chat.takes_tools, chat.eos_token) == ("switched", True, "<|im_end|>")
    assert chat.stop == ("<|im_end|>", "<|endoftext|>")
    assert made.bundle.sampling["thinking"]["temperature"] == 0.6
    assert made.bundle.sampling["direct"]["temperature"] == 0.7
    assert made.bundle.load.n_ctx == 256
    assert {row.n_ctx for row in made.bundle.memory} == {256}
    assert ("arm",) in {row.kernels for row in made.bundle.memory}
    for row in made.bundle.memory:
        parts = row.weights_bytes + row.head_copy_bytes + row.kv_bytes + row.compute_bytes + row.runtime_bytes
        assert row.peak_bytes == parts
    assert made.bundle.machine.cpu_features == device.cpu_features()


def test_parameters_of_apps_say_the_same_as_the_settings(made: Made) -> None:
    params = json.loads((made.folder / "llama-rn.json").read_text())
    assert params["context"] == {
        "model": "tiny.gguf", "n_ctx": 256, "n_batch": 512, "n_ubatch": 512, "n_parallel": 1, "flash_attn_type": "off",
        "use_mmap": False, "use_mlock": False, "cache_type_k": "f16", "cache_type_v": "f16",
    }  # fmt: skip
    thinking, direct = params["completion"]["thinking"], params["completion"]["direct"]
    assert (thinking["enable_thinking"], direct["enable_thinking"]) == (True, False)
    assert thinking["stop"] == ["<|im_end|>", "<|endoftext|>"]
    assert (thinking["temperature"], thinking["top_p"], thinking["top_k"], thinking["min_p"]) == (
        0.6,
        0.95,
        20,
        0.0,
    )
    words = shlex.split(made.bundle.llama_cpp["llama-server"])
    flags = dict(itertools.pairwise(words))
    assert (flags["-m"], flags["-c"], flags["-fa"], flags["--load-mode"], flags["-np"]) == (
        "tiny.gguf",
        "256",
        "off",
        "none",
        "1",
    )
    assert (flags["--temp"], flags["--top-k"], flags["--top-p"]) == ("0.6", "20", "0.95")


def test_settings_for_the_device_are_kept(made: Made, tmp_path: Path) -> None:
    load = LoadConfig(n_ctx=128, n_threads=3, kv_type="q8_0", flash_attention="on", load_mode="mmap")
    bundle = make_bundle(made.model, tmp_path / "b", BundleRequest(load=load))
    context = json.loads((tmp_path / "b" / "llama-rn.json").read_text())["context"]
    assert (context["n_threads"], context["cache_type_k"], context["flash_attn_type"]) == (3, "q8_0", "on")
    assert context["use_mmap"] is True
    assert "-t 3" in bundle.llama_cpp["llama-cli"]
    assert read_bundle(tmp_path / "b").load.config() == replace(load, n_ctx=128)
    bf16 = make_bundle(made.model, tmp_path / "c", BundleRequest(load=LoadConfig(n_ctx=128, kv_type="bf16")))
    assert bf16.load.kv_type == "bf16"
    assert "cache_type_k" not in json.loads((tmp_path / "c" / "llama-rn.json").read_text())["context"]


def test_without_a_checkpoint_the_gaps_are_said(made: Made, tmp_path: Path) -> None:
    model = shutil.copyfile(made.model, tmp_path / "other name.gguf")
    said: list[str] = []
    bundle = make_bundle(model, tmp_path / "b", PLAIN, say=said.append)
    assert said == ["without tokenizer.json: its checkpoint is not here; the model file has its tokenizer"]
    assert (bundle.model.file, bundle.model.tokenizer) == ("model.gguf", "in the model file")
    assert not (tmp_path / "b" / "tokenizer.json").exists()
    assert "The text itself is not in this bundle" in (tmp_path / "b" / "LICENSE").read_text()
    readme = (tmp_path / "b" / "README.md").read_text()
    assert "The tokenizer is inside the model file." in readme
    for record in bundle.files:
        assert record.name == "README.md" or record.sha256 in readme


def test_the_checkpoint_of_another_model_is_refused(made: Made, tmp_path: Path) -> None:
    reversed_bytes = {token: index for index, token in enumerate(reversed(synthetic.byte_alphabet()))}
    ends = [("<|im_end|>", True), ("<|endoftext|>", True)]
    other = synthetic.write_checkpoint(
        tmp_path / "ckpt", tokenizer=synthetic.tokenizer_json(reversed_bytes, [], ends)
    )
    with pytest.raises(ConfigError, match="has other tokens than the model"):
        make_bundle(made.model, tmp_path / "b", replace(PLAIN, checkpoint=other))
    (other / "tokenizer.json").write_text('{"model": {"vocab": [')
    with pytest.raises(ConfigError, match="has other tokens than the model"):
        make_bundle(made.model, tmp_path / "b", replace(PLAIN, checkpoint=other))
    with pytest.raises(ConfigError, match="has no tokenizer"):
        make_bundle(made.model, tmp_path / "b", replace(PLAIN, checkpoint=tmp_path / "none"))
    assert not (tmp_path / "b").exists()


def test_the_checkpoint_that_was_pulled_is_found(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companions, "locate_checkpoint", lambda name: {"Qwen/Tiny": made.checkpoint}[name])
    monkeypatch.setattr(writing, "origin_of", lambda path: Origin(kind="huggingface", location="Qwen/Tiny", revision="c0", licence="MIT"))  # fmt: skip
    bundle = make_bundle(made.model, tmp_path / "b", PLAIN)
    assert (bundle.model.tokenizer, bundle.model.repository, bundle.model.revision) == (
        "tokenizer.json",
        "Qwen/Tiny",
        "c0",
    )
    assert (bundle.model.licence, bundle.model.licence_source) == ("MIT", "publisher")
    assert bundle.model.licence_link == "https://spdx.org/licenses/MIT.html"
    assert (tmp_path / "b" / "LICENSE").read_text() == "Do what you like.\n"


def test_a_licence_is_told_with_who_says_so(made: Made) -> None:
    model = replace(
        made.bundle.model, licence="Apache-2.0", licence_source="catalog", licence_link="https://x"
    )
    text = papers.licence_text(model, MODELS["qwen3-0.6b"])
    assert "According to:         what qwen-edge knows of Qwen3-0.6B, which the model is by its name" in text
    assert "https://x" in text
    assert "not stated" in papers.licence_text(made.bundle.model, None)


def test_equal_models_make_equal_bundles(made: Made, tmp_path: Path) -> None:
    request = BundleRequest(load=LoadConfig(n_ctx=256), checkpoint=made.checkpoint)
    make_bundle(made.model, tmp_path / "tiny-bundle", request)
    for path in made.folder.iterdir():
        assert (tmp_path / "tiny-bundle" / path.name).read_bytes() == path.read_bytes()


def test_what_tuning_found_goes_along(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = TuneRecord(
        settings=Settings(n_threads=1, n_batch=64),
        workload=Workload(prompt_tokens=16, answer_tokens=8, depth=0),
        speeds={name: {"prefill": 100.0, "decode": 10.0, "turn_s": 1.0} for name in ("default", "tuned")},
        seconds=1.0,
        measured_at=0.0,
    )
    monkeypatch.setattr(writing, "find_record", lambda path: record)
    bundle = make_bundle(made.model, tmp_path / "b", PLAIN)
    assert bundle.tuned is not None
    assert bundle.tuned.settings["n_batch"] == 64
    assert bundle.speed is not None
    assert (bundle.speed.prefill_tokens_per_s, bundle.speed.decode_tokens_per_s) == (100.0, 10.0)
    assert bundle.load.n_batch == 512, "another device was not tuned"


def test_targets_that_are_there(made: Made, tmp_path: Path) -> None:
    target = tmp_path / "b"
    target.mkdir()
    make_bundle(made.model, target, PLAIN)
    with pytest.raises(ConfigError, match="exists already"):
        make_bundle(made.model, target, PLAIN)
    again = make_bundle(target / "tiny.gguf", target, replace(PLAIN, replace=True))
    assert check_files(target)[0] == again
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    with pytest.raises(ConfigError, match="with other files in it"):
        make_bundle(made.model, tmp_path / "mine", replace(PLAIN, replace=True))
    with pytest.raises(ConfigError, match="is a file"):
        make_bundle(made.model, tmp_path / "mine" / "notes", PLAIN)


def test_sources_that_are_no_model(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="without a model that runs"):
        make_bundle(made.checkpoint, tmp_path / "b", PLAIN)
    split = shutil.copyfile(made.model, tmp_path / "x-00001-of-00002.gguf")
    with pytest.raises(UnsupportedError, match="one of several files"):
        make_bundle(split, tmp_path / "b", PLAIN)
    with pytest.raises(ModelNotFoundError, match="no such file"):
        make_bundle(tmp_path / "none.gguf", tmp_path / "b", PLAIN)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(made.model.read_bytes()[:-500])
    with pytest.raises(FormatError, match="cut off"):
        make_bundle(cut, tmp_path / "b", PLAIN)
    with pytest.raises(ConfigError, match="more than"):
        make_bundle(made.model, tmp_path / "b", BundleRequest(load=LoadConfig(n_ctx=1024)))
    assert not (tmp_path / "b").exists()


def test_a_model_that_is_not_what_its_manifest_says_is_refused(made: Made, tmp_path: Path) -> None:
    model = shutil.copyfile(made.model, tmp_path / "tiny.gguf")
    shutil.copyfile(manifest_path(made.model), manifest_path(model))
    with model.open("rb+") as file:
        file.seek(-40, 2)
        file.write(b"\1")
    with pytest.raises(FormatError, match="not the file that its manifest describes"):
        make_bundle(model, tmp_path / "b", PLAIN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.gguf", "tiny.gguf.manifest.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_nothing_is_left_of_one_that_broke_off(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target = tmp_path / "b"
    make_bundle(made.model, target, PLAIN)

    def broken(*_: object) -> str:
        raise error

    monkeypatch.setattr(writing, "sums_text", broken)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OSError):
        make_bundle(made.model, target, replace(PLAIN, replace=True))
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert check_files(target)[0] is not None


def test_a_disk_that_is_too_small_is_told_before(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(NoSpaceError, match="not enough disk space"):
        make_bundle(made.model, tmp_path / "b", PLAIN)
