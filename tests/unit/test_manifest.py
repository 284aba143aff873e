from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge import __version__
from qwen_edge.errors import FormatError
from qwen_edge.manifest import (
    FileRecord,
    Manifest,
    Origin,
    manifest_path,
    read_manifest,
    records_of,
    tool_versions,
    write_manifest,
)


def example(folder: Path) -> Manifest:
    (folder / "b").write_bytes(b"bb")
    (folder / "a").write_bytes(b"a")
    return Manifest(
        action="convert",
        artefact=FileRecord.of(folder / "b"),
        origin=Origin(
            kind="huggingface", location="Qwen/Qwen3-0.6B", revision="c0ffee", licence="Apache-2.0"
        ),
        inputs=records_of([folder / "b", folder / "a"], folder),
        settings={"dtype": "bf16", "adapters": []},
        tools=tool_versions("numpy", "no-such-package"),
    )


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = example(tmp_path)
    path = write_manifest(tmp_path / "b", manifest)
    assert path == tmp_path / "b.manifest.json"
    assert read_manifest(tmp_path / "b") == manifest
    assert read_manifest(tmp_path / "a") is None
    assert [record.name for record in manifest.inputs] == ["a", "b"]
    assert manifest.inputs[1] == FileRecord(name="b", size_bytes=2, sha256=hashlib.sha256(b"bb").hexdigest())
    assert manifest.tools["qwen-edge"] == __version__
    assert manifest.tools["no-such-package"] == "absent"


def test_a_folder_keeps_it_inside(tmp_path: Path) -> None:
    assert manifest_path(tmp_path) == tmp_path / "manifest.json"


def test_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = (example(tmp_path / name) for name in ("one", "two"))
    assert first.to_json() == second.to_json()
    assert str(tmp_path) not in first.to_json()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    key=st.sampled_from(["schema", "action", "artefact", "origin", "inputs", "settings", "tools"]),
    value=json_values,
)
def test_a_wrong_field_is_our_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    document = json.loads(example(folder).to_json())
    document[key] = value
    manifest_path(folder / "b").write_text(json.dumps(document))
    try:
        manifest = read_manifest(folder / "b")
    except FormatError:
        return
    assert manifest is not None
    assert json.loads(manifest.to_json())[key] == value


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", "\ud800".encode("utf-8", "surrogatepass")])
def test_what_is_no_manifest_is_our_error(tmp_path: Path, text: str | bytes) -> None:
    manifest_path(tmp_path / "b").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FormatError, match="is no manifest"):
        read_manifest(tmp_path / "b")
