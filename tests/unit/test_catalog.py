"""The catalog's facts, and what names mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_edge.catalog import (
    MODELS,
    CatalogModel,
    ModelName,
    find_model,
    names_of,
    normalised,
    parse_model_name,
    recommended_sampling,
    recommended_sampling_for,
)
from qwen_edge.config import SamplingConfig
from qwen_edge.convert.qwen import ARCHITECTURES
from qwen_edge.errors import ConfigError, ModelNotFoundError, QwenEdgeError

ROWS = list(MODELS.values())
each_row = pytest.mark.parametrize("model", ROWS, ids=lambda row: row.name)

# Weights as the hubs count them, in millions.
PUBLISHED_MILLIONS = {
    "qwen3-0.6b": 596.0,
    "qwen3-1.7b": 1720.6,
    "qwen3-4b": 4022.5,
    "qwen3-embedding-0.6b": 595.8,
    "qwen3-reranker-0.6b": 595.8,
    "qwen2.5-0.5b": 494.0,
    "qwen2.5-coder-1.5b": 1543.7,
    "qwen2.5-3b": 3085.9,
    "deepseek-r1-distill-qwen-1.5b": 1777.1,
    "qwen3-8b": 8190.7,
    "qwen3-14b": 14768.3,
    "qwen3-32b": 32762.1,
    "qwen3-30b-a3b": 30532.1,
    "smollm2-135m": 134.5,
    "llama-3.2-1b": 1235.8,
    "gemma-3-1b": 999.9,
}


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_MILLIONS.items())
def test_weights_are_those_of_the_published_model(name: str, millions: float) -> None:
    assert round(MODELS[name].n_weights / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "kib"), [("qwen3-0.6b", 112), ("qwen3-1.7b", 112), ("qwen3-4b", 144), ("qwen2.5-0.5b", 12)]
)
def test_kv_cache_of_a_token(name: str, kib: int) -> None:
    shape = MODELS[name].shape
    assert shape is not None
    assert shape.kv_bytes_per_token() == kib * 1024
    assert shape.kv_bytes_per_token(34 / 32) == kib * 1024 * 17 / 32


@each_row
def test_checkpoint_size_is_that_of_bf16_weights(model: CatalogModel) -> None:
    weights_bytes = 2 * model.n_weights
    head_copy_bytes = 0
    if model.name in ("qwen3-0.6b", "qwen3-1.7b"):  # the two whose checkpoints hold the tied head twice
        assert model.shape is not None
        head_copy_bytes = 2 * model.shape.vocab_size * model.shape.hidden_size
    assert 0 < model.checkpoint_bytes - weights_bytes - head_copy_bytes < 50_000_000


@each_row
def test_a_row_does_not_contradict_itself(model: CatalogModel) -> None:
    assert (model.sampling_thinking is not None) == (model.thinking != "none")
    assert (model.sampling_direct is not None) == (model.kind == "chat" and model.thinking != "always")
    assert model.n_ctx_train % 1024 == 0
    assert model.n_ctx_extended is None or model.n_ctx_extended > model.n_ctx_train
    assert model.is_convertible == (model.published is None)
    assert (model.wheels is not None) == bool(model.file_name)
    assert model.licence
    assert model.family
    assert model.hub_id is not None
    if model.is_convertible:
        assert model.shape is not None
        assert model.architecture == ("qwen3" if model.shape.has_qk_norm else "qwen2")
        assert model.shape.has_qkv_bias == (model.architecture == "qwen2")
    if model.shape is not None and model.published is not None:
        assert model.published.n_weights == model.shape.n_weights


def test_architectures_are_those_of_the_converter() -> None:
    known = set(ARCHITECTURES.values())
    assert {row.architecture for row in ROWS if row.is_convertible} == known
    assert not {row.architecture for row in ROWS if not row.is_convertible} & known


def test_licences_that_are_not_free_are_said() -> None:
    others = {row.name: row.licence for row in ROWS if row.licence not in ("Apache-2.0", "MIT")}
    assert others == {
        "qwen2.5-3b": "Qwen Research",
        "qwen2.5-coder-3b": "Qwen Research",
        "llama-3.2-1b": "Llama 3.2 Community",
        "gemma-3-1b": "Gemma Terms of Use",
    }


def test_no_two_models_share_a_name() -> None:
    owners: dict[str, str] = {}
    for row in ROWS:
        for name in (*names_of(row), *map(normalised, row.repositories)):
            assert owners.setdefault(name, row.name) == row.name


def _spellings(text: str) -> set[str]:
    plain = {text, text.upper(), text.lower()}
    return {spelling.replace("-", mark) for spelling in plain for mark in "-_: "}


@each_row
def test_every_name_in_every_spelling(model: CatalogModel) -> None:
    for name in (model.name, model.title, *model.aliases):
        for spelling in _spellings(name):
            found = parse_model_name(spelling)
            assert (found.model, found.hub_id, found.type_name) == (model, None, None), spelling
            assert find_model(spelling) is model
    for repository in model.repositories:
        for spelling in _spellings(repository):
            found = parse_model_name(spelling)
            assert (found.model, found.hub_id) == (model, repository), spelling


@pytest.mark.parametrize(
    ("text", "model", "hub_id", "type_name"),
    [
        ("qwen3:0.6b", "qwen3-0.6b", None, None),
        ("  Qwen3 0.6B ", "qwen3-0.6b", None, None),
        ("qwen3-0.6b@q4_k_m", "qwen3-0.6b", None, "Q4_K_M"),
        ("qwen3-0.6b@Q4-K", "qwen3-0.6b", None, "Q4_K_M"),
        ("qwen3:0.6b:q8_0", "qwen3-0.6b", None, "Q8_0"),
        ("qwen2.5:0.5b-instruct", "qwen2.5-0.5b", None, None),
        ("Qwen/Qwen3-0.6B", "qwen3-0.6b", "Qwen/Qwen3-0.6B", None),
        ("qwen/qwen3-0.6b-gguf:Q8_0", "qwen3-0.6b", "Qwen/Qwen3-0.6B-GGUF", "Q8_0"),
        ("https://huggingface.co/Qwen/Qwen3-4B/", "qwen3-4b", "Qwen/Qwen3-4B", None),
        ("https://www.modelscope.cn/models/Qwen/Qwen3-4B", "qwen3-4b", "Qwen/Qwen3-4B", None),
        ("LLM-Research/gemma-3-1b-it", "gemma-3-1b", "LLM-Research/gemma-3-1b-it", None),
        ("hf.co/someone/else-7B@q4_0", None, "someone/else-7B", "Q4_0"),
        # Another owner's repository is not Qwen's, and the base model is not the one that chats.
        ("unsloth/Qwen3-0.6B", None, "unsloth/Qwen3-0.6B", None),
        ("Qwen/Qwen2.5-0.5B", None, "Qwen/Qwen2.5-0.5B", None),
    ],
)
def test_what_names_mean(text: str, model: str | None, hub_id: str | None, type_name: str | None) -> None:
    expected = ModelName(model=MODELS[model] if model else None, hub_id=hub_id, type_name=type_name)
    assert parse_model_name(text) == expected


@pytest.mark.parametrize(
    "text", ["model.gguf", "Model.GGUF", "./qwen3-0.6b", "/a/b", "a/b/c", "../x", "a\\b", "a/b.gguf"]
)
def test_paths_stay_paths(text: str) -> None:
    assert parse_model_name(text) == ModelName(path=Path(text))


def test_home_is_expanded() -> None:
    assert parse_model_name("~/m.gguf").path == Path.home() / "m.gguf"
    assert parse_model_name("~no-such-user/m.gguf").path == Path("~no-such-user/m.gguf")


def test_what_is_there_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("qwen3-0.6b", "Qwen/Qwen3-4B"):
        (tmp_path / name).mkdir(parents=True)
        assert parse_model_name(name) == ModelName(path=Path(name))


@pytest.mark.parametrize(
    ("text", "near"),
    [("qwen3-0.6", "qwen3-0.6b"), ("qwn3-4b", "qwen3-4b"), ("lama-3.2-1b@q4_0", "llama-3.2-1b")],
)
def test_the_nearest_name_is_offered(text: str, near: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        parse_model_name(text)
    assert f"Did you mean {near}?" in (caught.value.hint or "")


def test_wrong_types_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown quantization type 'q4_k_x'.*\n.*Q4_K_M"):
        parse_model_name("qwen3-0.6b@q4_k_x")
    with pytest.raises(ConfigError, match="names no model before the @"):
        parse_model_name("@q4_0")
    with pytest.raises(ModelNotFoundError):
        parse_model_name("")


NEAR_NAMES = st.text(alphabet="qwen3-._:/@ ~\\\0Q4_k0.6bGUF\n", max_size=40)


@given(st.one_of(st.text(max_size=300), NEAR_NAMES, st.sampled_from(sorted(MODELS)).flatmap(
    lambda name: st.text(max_size=5).map(lambda tail: name + tail))))  # fmt: skip
@example("a" * 5000)
@example("~\0")
@example("~\ud800")
@example("\ud800")
@example("hf://")
@example("https://huggingface.co/")
@example("Qwen/Qwen3-0.6B/")
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        found = parse_model_name(text)
    except QwenEdgeError:
        return
    if found.path is not None:
        assert found == ModelName(path=found.path)
    else:
        assert found.model is not None or found.hub_id is not None
        assert found.hub_id is None or found.hub_id.count("/") == 1


@each_row
@pytest.mark.parametrize("thinking", [True, False])
def test_sampling_of_each_model(model: CatalogModel, thinking: bool) -> None:
    found = recommended_sampling_for(model, thinking=thinking)
    if model.thinking == "switch":
        assert found == (model.sampling_thinking if thinking else model.sampling_direct)
    elif model.kind == "chat":  # one mode: its sampling, whatever is asked
        assert found == (model.sampling_thinking or model.sampling_direct)
    else:
        assert found == recommended_sampling(model.architecture, thinking=thinking)


def test_sampling_that_qwen_advises() -> None:
    assert recommended_sampling("qwen3", thinking=True) == SamplingConfig(
        temperature=0.6, top_p=0.95, top_k=20
    )
    assert recommended_sampling("qwen3", thinking=False) == SamplingConfig(
        temperature=0.7, top_p=0.8, top_k=20
    )
    assert recommended_sampling("qwen2", thinking=False).repetition_penalty == 1.05
    for name in ("qwen3-0.6b", "qwen3-4b-thinking-2507", "qwen2.5-coder-3b"):
        model = MODELS[name]
        thinks = model.thinking != "none"
        assert recommended_sampling_for(model, thinking=thinks) == recommended_sampling(
            model.architecture, thinking=thinks
        )


def test_the_name_in_a_file_decides_before_its_architecture() -> None:
    deepseek = recommended_sampling("qwen2", thinking=True, name="DeepSeek R1 Distill Qwen 1.5B")
    assert deepseek == MODELS["deepseek-r1-distill-qwen-1.5b"].sampling_thinking
    instruct = recommended_sampling("qwen3", thinking=True, name="Qwen3-4B-Instruct-2507")
    assert instruct == MODELS["qwen3-4b-instruct-2507"].sampling_direct
    assert recommended_sampling("qwen2", thinking=True, name="My fine-tune").repetition_penalty == 1.05
