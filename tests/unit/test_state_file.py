from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge import state_file
from qwen_edge.errors import FormatError
from qwen_edge.state_file import read_state_file, write_state_file

FACTS = {"text": "Grüße \ud800", "number": 0.5}
STATE = np.arange(300, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.state"
    write_state_file(path, "prefix", FACTS, [1, 2, 151_935], STATE)
    return path


def test_what_is_written_is_read(path: Path) -> None:
    content = read_state_file(path, "prefix")
    assert (content.facts, content.tokens) == (FACTS, [1, 2, 151_935])
    assert np.array_equal(content.state, STATE)


def test_a_file_without_a_state(tmp_path: Path) -> None:
    write_state_file(tmp_path / "b", "session", {}, [])
    content = read_state_file(tmp_path / "b", "session")
    assert (content.tokens, len(content.state)) == ([], 0)


def test_another_kind_or_version_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match="it is a prefix, expected a session"):
        read_state_file(path, "session")
    monkeypatch.setattr(state_file, "VERSION", 2)
    with pytest.raises(FormatError, match="version 1, expected 2"):
        read_state_file(path, "prefix")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_flipped_bit_is_found(path: Path, data: st.DataObject) -> None:
    whole = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    damaged = path.with_name("damaged")
    damaged.write_bytes(whole)
    with pytest.raises(FormatError, match="is no prefix file"):
        read_state_file(damaged, "prefix")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_other_length_is_found(path: Path, data: st.DataObject) -> None:
    whole = path.read_bytes()
    length = data.draw(st.integers(0, len(whole) + 3).filter(lambda n: n != len(whole)))
    damaged = path.with_name("damaged")
    damaged.write_bytes((whole + b"more")[:length])
    with pytest.raises(FormatError):
        read_state_file(damaged, "prefix")


@pytest.mark.parametrize("content", [b"", b"GGUF" * 100, bytes(48), b"QWENEDGE" + b"\xff" * 400])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError):
        read_state_file(tmp_path / "x", "prefix")


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_state_file(tmp_path / "absent", "prefix")
