"""Folders of an ONNX model whose files are damaged or made to harm: only our own errors before ONNX Runtime sees them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qwen_edge.engines.onnx_file import read_onnx_file
from qwen_edge.engines.onnx_folder import read_folder
from qwen_edge.errors import FormatError, QwenEdgeError

FACTS = {"format": 1, "form": "fused", "architecture": "qwen3", "n_ctx_train": 64, "is_tied": True}
CONFIG = {
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "eos_token_id": 3,
}
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def graph_bytes(facts: str, **external: object) -> bytes:
    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])

    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weights.data_location = TensorProto.EXTERNAL
    for key, entry in {"location": "model.onnx.data", "offset": 0, "length": 16, **external}.items():
        weights.external_data.add(key=key, value=str(entry))
    caches = ["past_key_values.0.key", "past_key_values.0.value"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["input_ids", "w"], ["logits"])],
        "g",
        [value(name) for name in ("input_ids", "attention_mask", "logits_positions", *caches)],
        [value(name) for name in ("logits", "present.0.key", "present.0.value")],
        [weights],
    )
    model = helper.make_model(graph)
    helper.set_model_props(model, {"qwen_edge": facts})
    content: bytes = model.SerializeToString()
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


def fill(folder: Path, **changed: str | bytes) -> Path:
    """Write a sound folder, with the given files in place of its own ("config" stands for config.json)."""
    files: dict[str, str | bytes] = {
        "model.onnx": graph_bytes(json.dumps(FACTS)),
        "model.onnx.data": bytes(16),
        "config.json": json.dumps(CONFIG),
        "tokenizer.json": json.dumps({"added_tokens": [{"id": 3, "content": "<end>"}]}),
        "tokenizer_config.json": "{}",
        "generation_config.json": "{}",
        "chat_template.jinja": "x",
    }
    for name, content in {**files, **{_name(key): content for key, content in changed.items()}}.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def _name(key: str) -> str:
    return {"graph": "model.onnx", "template": "chat_template.jinja"}.get(key, f"{key}.json")


def read_or_refuse(folder: Path) -> None:
    try:
        found = read_folder(folder)
    except QwenEdgeError:
        return
    assert found.n_ctx_train > 0
    assert found.n_params > 0
    assert all(isinstance(text, str) for text in found.special_texts.values())


def test_the_sound_folder_is_read(folder: Path) -> None:
    found = read_folder(fill(folder))
    assert found.special_texts == {"eos_token": "<end>"}
    assert found.chat_template == "x"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"template": b"\xff\xfe"}, "no UTF-8 text"),
        ({"config": "[" * 100_000}, "damaged"),
        ({"config": json.dumps({**CONFIG, "num_attention_heads": 0})}, "is damaged"),
        ({"config": json.dumps({**CONFIG, "hidden_size": float("inf")})}, "is damaged"),
        ({"config": json.dumps({**CONFIG, "vocab_size": -1})}, "is damaged"),
        ({"config": json.dumps({**CONFIG, "vocab_size": True})}, "is damaged"),
        ({"graph": graph_bytes("[" * 100_000)}, "'qwen_edge' is damaged"),
        ({"graph": graph_bytes(json.dumps({**FACTS, "n_ctx_train": -4}))}, "'qwen_edge' is damaged"),
        ({"graph": graph_bytes(json.dumps({**FACTS, "architecture": 4}))}, "'qwen_edge' is damaged"),
        ({"graph": graph_bytes("{}", location="a" * 300)}, "outside its folder"),
        ({"graph": graph_bytes("{}", location="a\0b")}, "outside its folder"),
        ({"graph": graph_bytes("{}", offset=2**70)}, "too short"),
        ({"graph": graph_bytes("{}", offset="9" * 5000)}, "no ONNX file, or damaged"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        read_folder(fill(folder, **changed))


def test_tokens_of_the_wrong_form_are_passed_over(folder: Path) -> None:
    added = [{"id": [], "content": "x"}, {"id": 3}, {"id": 3, "content": 7}, 5, {"id": 3, "content": "<end>"}]
    found = read_folder(fill(folder, tokenizer=json.dumps({"added_tokens": added})))
    assert found.special_texts == {"eos_token": "<end>"}


def test_a_sparse_graph_of_3_gb_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    os.truncate(path, 3 << 30)
    with pytest.raises(FormatError, match="more than 2 GiB"):
        read_onnx_file(path)
    os.truncate(path, 1 << 20)
    with pytest.raises(FormatError, match="field of number 0"):
        read_onnx_file(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
token_entries = st.fixed_dictionaries({"id": json_values, "content": json_values}) | json_values


def objects(sound: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A sound object with some values replaced, or any value."""
    return (
        st.dictionaries(st.sampled_from(sorted(sound)), json_values, max_size=3).map(sound.__or__)
        | json_values
    )


@patiently
@given(
    config=objects(CONFIG),
    tokenizer_config=objects({"eos_token": "<end>", "bos_token": {"content": "<s>"}, "chat_template": "y"}),
    tokenizer=objects({"added_tokens": []}) | st.lists(token_entries, max_size=3).map(lambda added: {"added_tokens": added}),
    generation=objects({"eos_token_id": [1, 2]}),
    facts=objects(FACTS),
)  # fmt: skip
def test_any_json_is_read_or_refused(
    folder: Path, config: Any, tokenizer_config: Any, tokenizer: Any, generation: Any, facts: Any
) -> None:
    fill(
        folder,
        config=json.dumps(config),
        tokenizer_config=json.dumps(tokenizer_config),
        tokenizer=json.dumps(tokenizer),
        generation_config=json.dumps(generation),
        graph=graph_bytes(json.dumps(facts)),
    )
    read_or_refuse(folder)


@patiently
@given(name=st.sampled_from(["config", "tokenizer_config", "tokenizer", "generation_config", "template"]), content=st.binary(max_size=60))  # fmt: skip
def test_any_bytes_of_a_file_are_read_or_refused(folder: Path, name: str, content: bytes) -> None:
    read_or_refuse(fill(folder, **{name: content}))


@patiently
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_graph_or_refused(folder: Path, content: bytes) -> None:
    read_or_refuse(fill(folder, graph=content))


@patiently
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(["set", "remove", "repeat", "cut"]), st.integers(0, 1000), st.integers(0, 255)
        ),
        min_size=1,
        max_size=4,
    ),
    n_data=st.integers(0, 20),
)
def test_a_changed_graph_is_read_or_refused(
    folder: Path, changes: list[tuple[str, int, int]], n_data: int
) -> None:
    content = bytearray(graph_bytes(json.dumps(FACTS)))
    for kind, position, amount in changes:
        at = position % max(len(content), 1)
        if kind == "set":
            content[at : at + 1] = bytes([amount])
        elif kind == "remove":
            del content[at : at + amount % 16]
        elif kind == "repeat":
            content[at:at] = content[at : at + amount]
        else:
            del content[at:]
    fill(folder, graph=bytes(content))
    (folder / "model.onnx.data").write_bytes(bytes(n_data))
    read_or_refuse(folder)
