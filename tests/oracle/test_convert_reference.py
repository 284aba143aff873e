"""Our GGUF files against those of llama.cpp's own converter (see convert_reference.py for what it needs)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests import synthetic
from tests.oracle.convert_reference import SOURCE_VARIABLE, compare_converters, is_available

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(not is_available(), reason="llama.cpp's converter is not named by the environment"),
]

# Two layers of true width, with the full vocabulary.
WIDE = replace(synthetic.SHAPES["0.6b"], layers=2)


def _full_tokenizer() -> dict[str, object]:
    return synthetic.qwen_tokenizer(Path(os.environ[SOURCE_VARIABLE]) / "models" / "ggml-vocab-qwen2.gguf")


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_tiny_qwen3_is_equal_in_all_tensors_and_keys(tmp_path: Path, dtype: str) -> None:
    result = compare_converters(synthetic.TINY_QWEN3, dtype, tmp_path)
    assert result["tensor_differences"] == {}
    assert result["key_differences"] == {}
    assert result["tensors_equal"] == 68


@pytest.mark.parametrize("source", ["F16", "F32"])
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_other_sources_round_the_same(tmp_path: Path, source: str, dtype: str) -> None:
    folder = synthetic.write_checkpoint(
        tmp_path / "Tiny-Qwen2", synthetic.as_qwen2(synthetic.TINY), dtype=source
    )
    result = compare_converters(folder, dtype, tmp_path)
    assert result["tensor_differences"] == {}
    assert result["key_differences"] == {}


@pytest.mark.parametrize("is_qwen2", [False, True], ids=["qwen3", "qwen2"])
def test_the_full_vocabulary_and_an_untied_head_are_equal(tmp_path: Path, is_qwen2: bool) -> None:
    shape = replace(WIDE, is_tied=False)
    shape = synthetic.as_qwen2(shape) if is_qwen2 else shape
    folder = synthetic.write_checkpoint(tmp_path / "Untied-0.6B-Instruct", shape, tokenizer=_full_tokenizer())
    result = compare_converters(folder, "bf16", tmp_path)
    assert result["tensor_differences"] == {}
    assert result["key_differences"] == {}


def test_a_copied_head_is_what_differs(tmp_path: Path) -> None:
    folder = synthetic.write_checkpoint(
        tmp_path / "Copied", WIDE, tokenizer=_full_tokenizer(), n_shards=2, has_head=True
    )
    result = compare_converters(folder, "bf16", tmp_path)
    # llama.cpp's converter stores the copy as a head of its own, and counts it in the label where the name of the
    # checkpoint has none. We drop it after comparing it with the embedding.
    assert result["tensor_differences"] == {"output.weight": "only in llama.cpp's"}
    assert result["key_differences"] == {"general.size_label": "187M | 343M"}


def test_a_model_card_and_sampling_are_equal(tmp_path: Path) -> None:
    folder = synthetic.write_checkpoint(tmp_path / "Qwen3-0.1B-Instruct-v2")
    card = "---\nlicense: apache-2.0\nlanguage: [en, de]\nbase_model: Qwen/Qwen3-0.6B-Base\ntags: [chat]\n---\n# Model\n"
    (folder / "README.md").write_text(card)
    synthetic.write_json(
        folder / "generation_config.json", {"repetition_penalty": 1.05, "top_k": 20, "min_p": 0.0}
    )
    result = compare_converters(folder, "bf16", tmp_path)
    assert result["tensor_differences"] == {}
    assert result["key_differences"] == {}


def test_an_embedding_model_is_equal(tmp_path: Path) -> None:
    tokenizer = synthetic.tiny_tokenizer()
    single = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
    ]
    pair = [
        *single,
        {"Sequence": {"id": "B", "type_id": 1}},
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 1}},
    ]
    end = {"id": "<|endoftext|>", "ids": [tokenizer["added_tokens"][0]["id"]], "tokens": ["<|endoftext|>"]}
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": {"<|endoftext|>": end},
    }
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [tokenizer["post_processor"], template]}
    folder = synthetic.write_checkpoint(tmp_path / "Tiny-Embedding", tokenizer=tokenizer)
    modules = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    synthetic.write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    synthetic.write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_lasttoken": True})
    result = compare_converters(folder, "bf16", tmp_path)
    assert result["tensor_differences"] == {}
    # Pairs of texts are for rerankers; what separates them is not read.
    assert result["key_differences"].keys() <= {"tokenizer.ggml.add_sep_token"}


@pytest.mark.parametrize("new_form", [True, False])
def test_a_config_of_newer_writers_is_equal(tmp_path: Path, new_form: bool) -> None:
    folder = synthetic.write_checkpoint(tmp_path / "Tiny-Qwen3")
    config = synthetic.config_of(synthetic.TINY)
    if new_form:
        del config["rope_scaling"], config["torch_dtype"]
        config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), "rope_type": "default"}
        config["dtype"] = "bfloat16"
        config["layer_types"] = ["full_attention"] * synthetic.TINY.layers
    synthetic.write_json(folder / "config.json", config)
    result = compare_converters(folder, "bf16", tmp_path)
    assert result["tensor_differences"] == {}
    assert result["key_differences"] == {}


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_reranker_is_equal(is_tied: bool, tmp_path: Path) -> None:
    shape = replace(WIDE, is_tied=is_tied)
    folder = synthetic.write_checkpoint(tmp_path / "Qwen3-Reranker-X", shape, tokenizer=_full_tokenizer())
    result = compare_converters(folder, "bf16", tmp_path)
    assert result["tensor_differences"] == {}
    # What separates the texts of a pair is not read.
    assert result["key_differences"] == {}


def test_yarn_is_equal(tmp_path: Path) -> None:
    folder = synthetic.write_checkpoint(tmp_path / "Tiny-YaRN")
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    synthetic.write_json(
        folder / "config.json", synthetic.config_of(synthetic.TINY) | {"rope_scaling": scaling}
    )
    result = compare_converters(folder, "bf16", tmp_path)
    assert result["tensor_differences"] == {}
    assert result["key_differences"] == {}
