from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.convert.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary, read_vocabulary
from qwen_edge.errors import CheckpointError, QwenEdgeError, UnsupportedError
from tests import synthetic

# A loaded machine is no failure.
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

VOCAB_SIZE = synthetic.TINY.vocab
TOKENIZER = synthetic.tiny_tokenizer()
IDS = {token["content"]: token["id"] for token in TOKENIZER["added_tokens"]}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    synthetic.write_side_files(tmp_path, synthetic.TINY, TOKENIZER)
    return tmp_path


def _read(folder: Path) -> Vocabulary:
    return read_vocabulary(folder, VOCAB_SIZE, json.loads((folder / "config.json").read_text()))


def _edit(folder: Path, name: str, change: Any) -> None:
    value = json.loads((folder / name).read_text())
    change(value)
    synthetic.write_json(folder / name, value)


def _set(value: Any, keys: tuple[Any, ...], new: Any) -> None:
    for key in keys[:-1]:
        value = value[key]
    value[keys[-1]] = new


def test_tokens_types_and_merges(folder: Path) -> None:
    vocabulary = _read(folder)
    assert vocabulary.pre_tokenizer == "qwen2"
    assert len(vocabulary.tokens) == len(vocabulary.token_types) == VOCAB_SIZE
    assert vocabulary.tokens[: len(TOKENIZER["model"]["vocab"])] == list(TOKENIZER["model"]["vocab"])
    assert vocabulary.merges == TOKENIZER["model"]["merges"]
    types = dict(zip(vocabulary.tokens, vocabulary.token_types, strict=True))
    assert types["a"] == types["the"] == NORMAL
    assert types["<|im_end|>"] == CONTROL
    assert types["<think>"] == USER_DEFINED
    assert types[f"[PAD{VOCAB_SIZE - 1}]"] == UNUSED


def test_special_tokens(folder: Path) -> None:
    vocabulary = _read(folder)
    assert vocabulary.special_ids == {
        "eos": IDS["<|im_end|>"],
        "pad": IDS["<|endoftext|>"],
        "bos": IDS["<|endoftext|>"],
    }
    assert vocabulary.adds == {"bos": False, "eos": False}


def test_special_tokens_may_be_objects(folder: Path) -> None:
    _edit(
        folder,
        "tokenizer_config.json",
        lambda c: c.update(eos_token={"content": "<|endoftext|>", "lstrip": False}),
    )
    assert _read(folder).special_ids["eos"] == IDS["<|endoftext|>"]


@pytest.mark.parametrize("eos", [IDS["<think>"], [IDS["<think>"], IDS["<|endoftext|>"]]])
def test_eos_of_the_config_is_a_number_or_a_list(folder: Path, eos: Any) -> None:
    (folder / "tokenizer_config.json").unlink()
    _edit(folder, "config.json", lambda config: config.update(eos_token_id=eos))
    assert _read(folder).special_ids["eos"] == IDS["<think>"]


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, "1", True, [VOCAB_SIZE], 1.0])
def test_an_impossible_special_id_is_named(folder: Path, token_id: Any) -> None:
    _edit(folder, "config.json", lambda config: config.update(bos_token_id=token_id))
    with pytest.raises(CheckpointError, match="'bos_token_id'"):
        _read(folder)


@pytest.mark.parametrize("text", ["<|fim_prefix|>", "<｜User｜>", "<unused7>", "<pad>"])
def test_tokens_that_look_special_are_control_tokens(folder: Path, text: str) -> None:
    _edit(
        folder,
        "tokenizer.json",
        lambda t: t["added_tokens"].append({"id": 299, "content": text, "special": False}),
    )
    vocabulary = _read(folder)
    assert (vocabulary.tokens[299], vocabulary.token_types[299]) == (text, CONTROL)


def test_a_token_that_only_tokenizer_config_adds_is_kept(folder: Path) -> None:
    _edit(
        folder,
        "tokenizer_config.json",
        lambda config: config["added_tokens_decoder"].update({"290": {"content": "<new>", "special": True}}),
    )
    assert _read(folder).tokens[290] == "<new>"


def test_merges_may_be_pairs(folder: Path) -> None:
    before = _read(folder).merges
    _edit(
        folder,
        "tokenizer.json",
        lambda t: t["model"].update(merges=[m.split(" ") for m in t["model"]["merges"]]),
    )
    assert _read(folder).merges == before


def test_the_chat_template_is_found_in_each_place(folder: Path) -> None:
    jinja = (folder / "chat_template.jinja").read_text()
    assert _read(folder).chat_template == jinja
    (folder / "chat_template.jinja").unlink()
    assert _read(folder).chat_template is None
    _edit(folder, "tokenizer_config.json", lambda config: config.update(chat_template=TEMPLATE))
    assert _read(folder).chat_template == TEMPLATE
    synthetic.write_json(folder / "chat_template.json", {"chat_template": "other"})
    assert _read(folder).chat_template == "other"


def test_named_chat_templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text(TEMPLATE)
    found = _read(folder).chat_template
    assert isinstance(found, list)
    assert [entry["name"] for entry in found] == ["default", "rag"]


@pytest.mark.parametrize("template", [5, [5], [{"name": "a"}], {"a": "b"}, "\ud800"])
def test_a_chat_template_of_another_kind_is_refused(folder: Path, template: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    with pytest.raises(CheckpointError, match="chat template"):
        _read(folder)


def test_an_embedding_model_closes_its_texts(folder: Path) -> None:
    single = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
    ]
    processors = [TOKENIZER["post_processor"], {"type": "TemplateProcessing", "single": single}]
    _edit(
        folder,
        "tokenizer.json",
        lambda t: t.update(post_processor={"type": "Sequence", "processors": processors}),
    )
    vocabulary = _read(folder)
    assert vocabulary.adds == {"bos": False, "eos": True}
    assert vocabulary.special_ids["eos"] == IDS["<|endoftext|>"]
    assert vocabulary.special_ids["eot"] == IDS["<|im_end|>"]


def test_a_tokenizer_that_begins_each_text(folder: Path) -> None:
    single = [{"SpecialToken": {"id": "<|im_start|>"}}, {"Sequence": {"id": "A"}}]
    _edit(
        folder,
        "tokenizer.json",
        lambda t: t.update(post_processor={"type": "TemplateProcessing", "single": single}),
    )
    vocabulary = _read(folder)
    assert vocabulary.adds == {"bos": True, "eos": False}
    assert vocabulary.special_ids["bos"] == IDS["<|im_start|>"]


SPLIT = ("pre_tokenizer", "pretokenizers", 0)
BYTE_LEVEL = ("pre_tokenizer", "pretokenizers", 1)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        ((*SPLIT, "pattern", "Regex"), r"\w+", "'pre_tokenizer' is"),
        ((*SPLIT, "behavior"), "Removed", "'pre_tokenizer' is"),
        ((*SPLIT, "invert"), True, "'pre_tokenizer' is"),
        ((*BYTE_LEVEL, "add_prefix_space"), True, "'pre_tokenizer' is"),
        ((*BYTE_LEVEL, "use_regex"), True, "'pre_tokenizer' is"),
        (("pre_tokenizer",), {"type": "Whitespace"}, "'pre_tokenizer' is"),
        (("pre_tokenizer",), None, "'pre_tokenizer' is"),
        (("normalizer",), {"type": "Lowercase"}, "normalizer 'Lowercase'"),
        (("normalizer",), {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}, "normalizer 'NFKC'"),
        (("post_processor",), {"type": "RobertaProcessing"}, "post-processor 'RobertaProcessing'"),
        (("post_processor",), {"type": "TemplateProcessing", "single": []}, "template"),
        (
            ("post_processor",),
            {"type": "TemplateProcessing", "single": [{"Sequence": 1}, {"SpecialToken": 5}]},
            "template",
        ),
        (("model", "type"), "Unigram", "the model is 'Unigram'"),
        (("model", "byte_fallback"), True, "'byte_fallback'"),
        (("model", "ignore_merges"), True, "'ignore_merges'"),
        (("model", "end_of_word_suffix"), "</w>", "'end_of_word_suffix'"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_misread_is_refused(
    folder: Path, keys: tuple[Any, ...], value: Any, said: str
) -> None:
    _edit(folder, "tokenizer.json", lambda tokenizer: _set(tokenizer, keys, value))
    with pytest.raises(UnsupportedError, match=said) as raised:
        _read(folder)
    assert "tokenizer.json" in str(raised.value)
    assert raised.value.hint


@pytest.mark.parametrize("normalizer", [None, {"type": "Sequence", "normalizers": []}])
def test_a_tokenizer_that_does_not_compose_is_told_apart(folder: Path, normalizer: Any) -> None:
    assert _read(folder).pre_tokenizer == "qwen2"
    _edit(folder, "tokenizer.json", lambda tokenizer: tokenizer.update(normalizer=normalizer))
    assert _read(folder).pre_tokenizer == "deepseek-r1-qwen"


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("model", "vocab", "a"), VOCAB_SIZE, f"'a' has id {VOCAB_SIZE}.*0..{VOCAB_SIZE - 1}"),
        (("model", "vocab", "a"), "7", "'a' has id \"7\""),
        (("model", "vocab", "a"), True, "'a' has id true"),
        (("model", "vocab", "a"), 0, "id 0 is both"),
        (("model", "vocab", ""), 299, "expected a text"),
        (("model", "vocab"), {}, "'vocab' is empty or absent"),
        (("model", "vocab"), [], "'vocab' is \\[\\], expected an object"),
        (("model", "merges"), [], "'merges' is empty"),
        (("model", "merges"), ["a b c"], 'a merge is "a b c"'),
        (("model", "merges"), ["z z"], 'merge "z z" uses or makes'),
        (("model", "merges"), [5], "a merge is 5"),
        (("added_tokens", 0, "id"), 0, "both '!?.*' and the added token|calls the added token"),
        (("added_tokens", 0), 5, "an added token is 5"),
        (("added_tokens", 0, "id"), None, "no 'id'"),
        (("added_tokens", 0, "content"), "<|other|>", "calls the added token"),
        (("added_tokens", 0, "special"), "yes", "'special' is \"yes\""),
    ],
)
def test_a_damaged_tokenizer_is_named(folder: Path, keys: tuple[Any, ...], value: Any, said: str) -> None:
    _edit(folder, "tokenizer.json", lambda tokenizer: _set(tokenizer, keys, value))
    with pytest.raises(CheckpointError, match=said) as raised:
        _read(folder)
    assert "tokenizer" in str(raised.value)


def test_half_a_surrogate_pair_is_refused(folder: Path) -> None:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer["model"]["vocab"]["\ud83d"] = 299
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="UTF-8"):
        _read(folder)


def test_the_tokenizer_is_needed(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        _read(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 310) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
PLACES = [
    ("model",),
    ("model", "vocab"),
    ("model", "vocab", "a"),
    ("model", "merges"),
    ("model", "merges", 0),
    ("model", "unk_token"),
    ("added_tokens",),
    ("added_tokens", 0),
    ("added_tokens", 0, "content"),
    ("normalizer",),
    ("normalizer", "type"),
    ("pre_tokenizer",),
    ("pre_tokenizer", "type"),
    ("pre_tokenizer", "pretokenizers"),
    (*SPLIT,),
    (*SPLIT, "pattern"),
    ("post_processor",),
    ("post_processor", "type"),
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    synthetic.write_side_files(folder, synthetic.TINY, TOKENIZER)
    return folder


@patiently
@given(place=st.sampled_from(PLACES), value=json_values)
def test_any_tokenizer_ends_in_a_vocabulary_or_in_our_error(
    scratch: Path, place: tuple[Any, ...], value: Any
) -> None:
    tokenizer = copy.deepcopy(TOKENIZER)
    _set(tokenizer, place, value)
    (scratch / "tokenizer.json").write_text(json.dumps(tokenizer))
    try:
        vocabulary = _read(scratch)
    except QwenEdgeError:
        return
    assert len(vocabulary.tokens) == VOCAB_SIZE
    assert all(token.encode() for token in vocabulary.tokens)


@patiently
@given(
    config=json_values
    | st.dictionaries(
        st.sampled_from(["added_tokens_decoder", "eos_token", "chat_template", "add_bos_token", "bos_token"]),
        json_values,
    )
)
def test_any_tokenizer_config_ends_in_a_vocabulary_or_in_our_error(
    tmp_path_factory: pytest.TempPathFactory, config: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "tokenizer_config"
    if not folder.exists():
        synthetic.write_side_files(folder, synthetic.TINY, TOKENIZER)
        (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        assert len(_read(folder).tokens) == VOCAB_SIZE
    except QwenEdgeError:
        return
