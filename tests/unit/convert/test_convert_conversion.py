from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwen_edge.convert import ConversionReport, convert_checkpoint
from qwen_edge.convert.dtypes import OutputType
from qwen_edge.errors import CheckpointError, ConfigError, UnsupportedError
from tests import synthetic

Tensors = dict[str, np.ndarray[Any, Any]]
QWEN2 = synthetic.as_qwen2(synthetic.TINY)


class GGUF(NamedTuple):
    keys: dict[str, Any]
    tensors: dict[str, Any]


def _open(path: Path) -> GGUF:
    reader = gguf.GGUFReader(path)
    keys = {key: field.contents() for key, field in reader.fields.items()}
    return GGUF(keys, {tensor.name: tensor for tensor in reader.tensors})


def _edit_weights(folder: Path, change: Callable[[Tensors], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    synthetic.write_json(folder / "config.json", config | changes)


def _refused(folder: Path, error: type[Exception], said: str) -> Any:
    """Check that a conversion fails with this message and leaves nothing, and return the error."""
    target = folder.parent / "out" / "model.gguf"
    with pytest.raises(error, match=said) as raised:
        convert_checkpoint(folder, target)
    assert not target.parent.exists() or not list(target.parent.iterdir())
    return raised.value


@pytest.mark.parametrize("shape", [synthetic.TINY, QWEN2], ids=["qwen3", "qwen2"])
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("source", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_tensors_hold_the_weights_of_the_checkpoint(
    tmp_path: Path, shape: synthetic.Shape, is_tied: bool, source: str, dtype: OutputType
) -> None:
    folder = synthetic.write_checkpoint(tmp_path / "c", replace(shape, is_tied=is_tied), dtype=source)
    report = convert_checkpoint(folder, tmp_path / "m.gguf", dtype=dtype)
    tensors = _open(report.path).tensors
    weights = load_file(folder / "model.safetensors")
    assert len(tensors) == len(weights) == report.tensor_count
    assert ("output.weight" in tensors) == (not is_tied)
    names = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
    names |= {"blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight"}
    for gguf_name, name in names.items():
        if gguf_name in tensors:
            kind = gguf.GGMLQuantizationType[dtype.upper()]
            assert tensors[gguf_name].tensor_type is kind
            expected = gguf.quants.quantize(weights[name].astype(np.float32), kind)
            assert tensors[gguf_name].data.tobytes() == expected.tobytes()
    for tensor in tensors.values():
        if len(tensor.shape) == 1:
            assert tensor.tensor_type is gguf.GGMLQuantizationType.F32


def test_metadata_of_qwen3(checkpoint: Path, tmp_path: Path) -> None:
    keys = _open(convert_checkpoint(checkpoint, tmp_path / "m.gguf").path).keys
    assert keys["general.architecture"] == "qwen3"
    assert keys["general.type"] == "model"
    assert keys["general.name"] == "Tiny Qwen3"
    assert keys["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    assert keys["general.sampling.temp"] == pytest.approx(0.6)
    assert (keys["general.sampling.top_k"], keys["general.sampling.top_p"]) == (20, pytest.approx(0.95))
    assert keys["qwen3.block_count"] == 2
    assert keys["qwen3.attention.key_length"] == keys["qwen3.attention.value_length"] == 16
    assert keys["qwen3.attention.head_count_kv"] == 2
    assert keys["qwen3.rope.freq_base"] == 1e6
    assert keys["tokenizer.ggml.pre"] == "qwen2"
    assert (
        len(keys["tokenizer.ggml.tokens"]) == len(keys["tokenizer.ggml.token_type"]) == synthetic.TINY.vocab
    )
    assert keys["tokenizer.chat_template"] == (checkpoint / "chat_template.jinja").read_text()


def test_qwen2_has_no_head_size_of_its_own(tmp_path: Path) -> None:
    folder = synthetic.write_checkpoint(tmp_path / "c", QWEN2)
    keys = _open(convert_checkpoint(folder, tmp_path / "m.gguf").path).keys
    assert keys["general.architecture"] == "qwen2"
    assert "qwen2.attention.key_length" not in keys


def test_the_report_says_what_was_made(checkpoint: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = convert_checkpoint(
        checkpoint, tmp_path / "m.gguf", dtype="f16", progress=lambda done, total: calls.append((done, total))
    )
    assert isinstance(report, ConversionReport)
    n_weights = sum(np.prod(shape) for shape in synthetic.tensor_shapes(synthetic.TINY).values())
    assert (report.architecture, report.dtype, report.parameter_count) == ("qwen3", "f16", n_weights)
    assert report.size_bytes == (tmp_path / "m.gguf").stat().st_size
    assert json.loads(json.dumps(report.to_dict()))["path"] == str(tmp_path / "m.gguf")
    totals = {total for _, total in calls}
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert totals == {calls[-1][0]}


def test_shards_give_the_same_file(checkpoint: Path, tmp_path: Path) -> None:
    shards = synthetic.write_checkpoint(tmp_path / "other" / checkpoint.name, n_shards=3)
    one, many = (
        convert_checkpoint(source, tmp_path / f"{n}.gguf") for n, source in enumerate([checkpoint, shards])
    )
    assert one.path.read_bytes() == many.path.read_bytes()


def test_names_without_the_model_prefix_give_the_same_file(checkpoint: Path, tmp_path: Path) -> None:
    before = convert_checkpoint(checkpoint, tmp_path / "a.gguf").path.read_bytes()

    def strip(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    _edit_weights(checkpoint, strip)
    _edit_config(checkpoint, architectures=["Qwen3Model"])
    assert convert_checkpoint(checkpoint, tmp_path / "b.gguf").path.read_bytes() == before


def test_a_copy_of_the_tied_head_is_dropped(checkpoint: Path, tmp_path: Path) -> None:
    copied = synthetic.write_checkpoint(tmp_path / "other" / checkpoint.name, has_head=True, n_shards=2)
    report = convert_checkpoint(copied, tmp_path / "copied.gguf")
    assert [tensor.name for tensor in report.dropped] == ["lm_head.weight"]
    assert "bitwise copy" in report.dropped[0].reason
    assert (
        report.path.read_bytes() == convert_checkpoint(checkpoint, tmp_path / "tied.gguf").path.read_bytes()
    )


def _change_one_bit(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"].view(np.uint16)[-1, -1] ^= 1


def _widen(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].astype(np.float32)


def _cut(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][:-1].copy()


@pytest.mark.parametrize("change", [_change_one_bit, _widen, _cut])
def test_a_tied_head_that_is_no_copy_is_an_error(checkpoint: Path, change: Callable[[Tensors], None]) -> None:
    _edit_weights(checkpoint, change)
    error = _refused(
        checkpoint, CheckpointError, "'lm_head.weight' .* is not a copy of 'model.embed_tokens.weight'"
    )
    assert "tie_word_embeddings" in error.hint


def test_an_untied_head_that_is_missing_is_an_error(checkpoint: Path) -> None:
    _edit_config(checkpoint, tie_word_embeddings=False)
    error = _refused(checkpoint, CheckpointError, "lacks tensors .*'lm_head.weight'")
    assert "tie_word_embeddings" in error.hint


def test_missing_tensors_are_named_with_the_files(checkpoint: Path) -> None:
    _edit_weights(checkpoint, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    _refused(
        checkpoint, CheckpointError, r"lacks tensors .*'layers.1.mlp.up_proj.weight' .*model\.safetensors"
    )


def test_a_single_shard_lacks_most_tensors(tmp_path: Path) -> None:
    folder = synthetic.write_checkpoint(tmp_path / "c", n_shards=2)
    with pytest.raises(CheckpointError, match=r"lacks tensors .* and \d+ more") as raised:
        convert_checkpoint(folder / "model-00001-of-00002.safetensors", tmp_path / "m.gguf")
    assert "their folder" in str(raised.value.hint)


def test_left_over_tensors_are_named(checkpoint: Path) -> None:
    weight = np.zeros((2, 2), dtype=ml_dtypes.bfloat16)
    _edit_weights(checkpoint, lambda tensors: tensors.update({"model.layers.2.mlp.lora_A.weight": weight}))
    _refused(
        checkpoint,
        CheckpointError,
        "holds tensors .* not have: 'model.layers.2.mlp.lora_A.weight' in model.safetensors",
    )


def test_one_tensor_under_two_names_is_an_error(checkpoint: Path) -> None:
    norm = np.zeros(synthetic.TINY.hidden, dtype=ml_dtypes.bfloat16)
    _edit_weights(checkpoint, lambda tensors: tensors.update({"norm.weight": norm}))
    _refused(checkpoint, CheckpointError, "one tensor twice: .*norm.weight")


def test_rotary_frequencies_are_dropped(checkpoint: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    _edit_weights(checkpoint, lambda tensors: tensors.update({name: np.ones(8, dtype=np.float32)}))
    report = convert_checkpoint(checkpoint, tmp_path / "m.gguf")
    assert [tensor.name for tensor in report.dropped] == [name]


def test_a_shape_that_contradicts_the_config_is_an_error(checkpoint: Path) -> None:
    _edit_config(checkpoint, intermediate_size=64)
    _refused(
        checkpoint,
        CheckpointError,
        r"'model.layers.0.mlp.gate_proj.weight' in .*model.safetensors has shape \[48, 32\]; .* \[64, 32\]",
    )


def test_a_transposed_matrix_is_an_error(checkpoint: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    _edit_weights(checkpoint, lambda tensors: tensors.update({name: tensors[name].T.copy()}))
    _refused(checkpoint, CheckpointError, r"down_proj.weight' .* has shape \[48, 32\]; .* \[32, 48\]")


def test_integer_weights_are_unsupported(checkpoint: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    _edit_weights(checkpoint, lambda tensors: tensors.update({name: np.zeros((32, 48), dtype=np.int8)}))
    _refused(checkpoint, UnsupportedError, "down_proj.weight' in .* is stored as I8")


def test_a_vocabulary_larger_than_the_embedding_is_an_error(checkpoint: Path) -> None:
    synthetic.write_json(checkpoint / "tokenizer.json", synthetic.tiny_tokenizer())
    small = replace(synthetic.TINY, vocab=260)
    synthetic.write_safetensors(checkpoint / "model.safetensors", synthetic.tensor_shapes(small))
    _edit_config(checkpoint, vocab_size=260)
    _refused(checkpoint, CheckpointError, r"has id 26\d, but config.json allows 0..259")


def test_a_value_beyond_f16_names_its_tensor(checkpoint: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    _edit_weights(checkpoint, lambda tensors: tensors[name].__setitem__((0, 0), 2.0**20))
    with pytest.raises(UnsupportedError, match=f"'{name}' in .*model.safetensors: a weight of 1\\.049e\\+06"):
        convert_checkpoint(checkpoint, tmp_path / "out" / "m.gguf", dtype="f16")
    assert not list((tmp_path / "out").iterdir())


def test_an_unknown_type_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'q8_0', expected one of f32, f16, bf16"):
        convert_checkpoint(checkpoint, tmp_path / "m.gguf", dtype="q8_0")  # type: ignore[arg-type]


def test_the_target_is_never_the_source(checkpoint: Path) -> None:
    before = (checkpoint / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="a file of the checkpoint"):
        convert_checkpoint(checkpoint, checkpoint / "model.safetensors")
    with pytest.raises(ConfigError, match="is a folder"):
        convert_checkpoint(checkpoint, checkpoint)
    assert (checkpoint / "model.safetensors").read_bytes() == before


def test_a_disk_without_room_is_noticed_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match="not enough disk space for ") as raised:
        convert_checkpoint(checkpoint, tmp_path / "out" / "m.gguf")
    assert raised.value.errno == errno.ENOSPC
    assert not (tmp_path / "out").exists()


CARD = """---
license: apache-2.0
language:
- en
- no
base_model: Qwen/Qwen3-0.6B-Base
tags: [chat]
---
# A model
"""


def test_the_model_card_fills_the_metadata(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "README.md").write_text(CARD)
    keys = _open(convert_checkpoint(checkpoint, tmp_path / "m.gguf").path).keys
    assert keys["general.license"] == "apache-2.0"
    assert keys["general.languages"] == ["en", "no"]
    assert keys["general.base_model.0.repo_url"].endswith("/Qwen/Qwen3-0.6B-Base")


@pytest.mark.parametrize(
    "card",
    [b"---\nlicense: [\n---\n", b"---\nlicense: 5\n---\n", b"---\ntags: [1, 2]\n---\n", b"\xff\xfe---"],
)
def test_a_broken_model_card_is_named(checkpoint: Path, card: bytes) -> None:
    (checkpoint / "README.md").write_bytes(card)
    error = _refused(checkpoint, CheckpointError, "README.md cannot be understood")
    assert "only describes" in error.hint


def test_named_chat_templates_are_listed_in_order(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    templates = [{"name": name, "template": f"{name}!"} for name in ("tool use", "default", "rag", "a", "z")]
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    synthetic.write_json(checkpoint / "tokenizer_config.json", config | {"chat_template": templates})
    keys = _open(convert_checkpoint(checkpoint, tmp_path / "m.gguf").path).keys
    assert keys["tokenizer.chat_template"] == "default!"
    assert keys["tokenizer.chat_templates"] == ["a", "rag", "tool_use", "z"]
    assert keys["tokenizer.chat_template.tool_use"] == "tool use!"


def test_the_repetition_penalty_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    synthetic.write_json(checkpoint / "generation_config.json", {"repetition_penalty": 1.05, "top_k": None})
    keys = _open(convert_checkpoint(checkpoint, tmp_path / "m.gguf").path).keys
    assert keys["general.sampling.penalty_repeat"] == pytest.approx(1.05)
    assert "general.sampling.top_k" not in keys


@pytest.mark.parametrize(
    "value", [{"top_k": 2**40}, {"temperature": "hot"}, {"top_p": 1e300}, {"sequence": 5}, []]
)
def test_a_broken_generation_config_is_named(checkpoint: Path, value: Any) -> None:
    synthetic.write_json(checkpoint / "generation_config.json", value)
    _refused(checkpoint, CheckpointError, "generation_config.json")


def _make_embedding_model(folder: Path, pooling: dict[str, Any]) -> None:
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    synthetic.write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    synthetic.write_json(folder / "1_Pooling" / "config.json", pooling)


@pytest.mark.parametrize("pooling", [{"pooling_mode_lasttoken": True}, {"pooling_mode": "lasttoken"}])
def test_an_embedding_model_keeps_its_pooling(
    checkpoint: Path, tmp_path: Path, pooling: dict[str, Any]
) -> None:
    _make_embedding_model(checkpoint, pooling)
    keys = _open(convert_checkpoint(checkpoint, tmp_path / "m.gguf").path).keys
    assert keys["qwen3.pooling_type"] == gguf.PoolingType.LAST


def test_an_unknown_pooling_is_refused(checkpoint: Path) -> None:
    _make_embedding_model(checkpoint, {"pooling_mode_max_tokens": True})
    _refused(checkpoint, UnsupportedError, "none of mean, cls and last token")


@pytest.mark.parametrize(
    "content", ["{", "[5]", "{}", '[{"type": 5}]', '[{"type": "x.Pooling", "path": "../.."}]']
)
def test_a_broken_list_of_modules_is_named(checkpoint: Path, content: str) -> None:
    (checkpoint / "modules.json").write_text(content)
    _refused(checkpoint, CheckpointError, r"modules\.json|missing from")
