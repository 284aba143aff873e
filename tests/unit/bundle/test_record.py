"""bundle.json as it is written, and as a stranger may have written it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.bundle.record import _signed, bundled_model, is_bundle, parse_bundle, read_bundle
from qwen_edge.errors import FormatError, ModelNotFoundError, UnsupportedError
from qwen_edge.hub import locate
from tests.unit.bundle.conftest import Made


def signed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change bundle.json as somebody would who knows how its digest is made."""
    path = folder / "bundle.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(_signed(data))


def test_what_is_written_is_read(made: Made) -> None:
    assert read_bundle(made.folder) == made.bundle
    assert (made.folder / "bundle.json").read_text() == made.bundle.to_json()
    assert json.loads(made.bundle.to_json())["schema"] == "qwen-edge/bundle/1"


def test_a_name_leads_to_the_model(made: Made) -> None:
    assert is_bundle(made.folder)
    assert locate(made.folder) == made.folder / "tiny.gguf"
    assert locate(str(made.folder)) == made.folder / "tiny.gguf"
    assert not is_bundle(made.checkpoint)
    assert locate(made.checkpoint) == made.checkpoint
    assert not is_bundle("x" * 5000)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data["model"].update(file="../tiny.gguf"), "cannot be the name of a file"),
        (lambda data: data["model"].update(file="/etc/passwd.gguf"), "cannot be the name of a file"),
        (lambda data: data["model"].update(file="a\\b.gguf"), "cannot be the name of a file"),
        (lambda data: data["model"].update(file="..gguf"), "cannot be the name of a file"),
        (lambda data: data["model"].update(file="other.gguf"), "files lacks other.gguf"),
        (lambda data: data.update(files=[row for row in data["files"] if row["name"] != "requirements.lock"]), "files lacks requirements.lock"),
        (lambda data: data.update(files=[row for row in data["files"] if row["name"] != "chat_template.jinja"]), "files lacks chat_template.jinja"),
        (lambda data: data["model"].update(file="README.md"), "not of the format gguf"),
        (lambda data: data["model"].update(file=7), "model.file must be a text"),
        (lambda data: data["model"].update(format="exe"), "known are gguf and onnx"),
        (lambda data: data["files"][0].update(name="../x"), "cannot be the name of a file"),
        (lambda data: data["files"][0].update(name="bundle.json"), "cannot be the name of a file"),
        (lambda data: data["files"][0].update(name=data["files"][1]["name"].upper()), "a name twice"),
        (lambda data: data["files"][0].update(sha256="0"), "size or digest"),
        (lambda data: data["files"][0].update(size_bytes=-1), "size or digest"),
        (lambda data: data["files"][0].update(size_bytes=True), "files[0].size_bytes must be a whole number"),
        (lambda data: data.update(files={}), "files must be a list"),
        (lambda data: data.update(model=[]), "model must be an object"),
        (lambda data: data.pop("memory"), "memory is missing"),
        (lambda data: data["load"].update(n_ctx=10**400), "load: n_ctx"),
        (lambda data: data["load"].update(n_ctx=-5), "load: n_ctx"),
        (lambda data: data["load"].update(kv_type="q9"), "load: kv_type"),
        (lambda data: data["chat"].update(template="../t.jinja"), "chat.template"),
        (lambda data: data["model"].update(bits_per_weight=float("nan")), "bits_per_weight must be a number"),
        (lambda data: data.update(schema="other/1"), "its schema is 'other/1'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    copied: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    signed(copied, change)
    with pytest.raises(FormatError, match=r"bundle\.json is damaged") as caught:
        locate(copied)
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", "[" * 100_000, '{"schema": 1}', "\x00", '"' + "9" * 5000]
)
def test_other_documents_are_refused(copied: Path, text: str) -> None:
    (copied / "bundle.json").write_text(text)
    with pytest.raises(FormatError, match="damaged"):
        read_bundle(copied)


def test_another_version_of_the_schema_is_said(copied: Path) -> None:
    signed(copied, lambda data: data.update(schema="qwen-edge/bundle/9"))
    with pytest.raises(UnsupportedError, match="has the schema qwen-edge/bundle/9; this version reads"):
        read_bundle(copied)


def test_a_huge_document_is_not_read(copied: Path) -> None:
    with (copied / "bundle.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="more than 4,000,000 bytes"):
        read_bundle(copied)


def test_bytes_that_are_no_text_are_refused(copied: Path) -> None:
    (copied / "bundle.json").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="damaged"):
        read_bundle(copied)


def test_an_edit_by_hand_shows(copied: Path) -> None:
    path = copied / "bundle.json"
    path.write_text(path.read_text().replace('"n_ctx": 256', '"n_ctx": 512'))
    with pytest.raises(FormatError, match="it was changed: its digest is another one"):
        read_bundle(copied)
    with pytest.raises(ModelNotFoundError, match="is no bundle"):
        read_bundle(copied.parent)


def test_links_out_of_the_folder_are_refused(copied: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.gguf"
    (copied / "tiny.gguf").rename(outside)
    with pytest.raises(ModelNotFoundError, match=r"lacks its model tiny\.gguf"):
        bundled_model(copied)
    (copied / "tiny.gguf").symlink_to(outside)
    with pytest.raises(FormatError, match="is a link"):
        bundled_model(copied)
    (copied / "tiny.gguf").unlink()
    outside.rename(copied / "tiny.gguf")
    assert bundled_model(copied) == copied / "tiny.gguf"
    (copied / "tokenizer.json").rename(tmp_path / "outside.json")
    (copied / "tokenizer.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(FormatError, match=r"tokenizer\.json is a link"):
        bundled_model(copied)
    (copied / "bundle.json").rename(tmp_path / "elsewhere.json")
    (copied / "bundle.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(FormatError, match="is a link"):
        read_bundle(copied)


_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), value=_ANY_JSON)
def test_any_value_in_any_place_is_read_or_refused(made: Made, data: st.DataObject, value: object) -> None:
    document = json.loads(made.bundle.to_json())
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not place[key] or not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    with suppress(ValueError, UnsupportedError):
        parse_bundle(_signed(document))
