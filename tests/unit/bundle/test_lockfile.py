"""The lockfile of what is installed, from made-up packages and from the real ones."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from qwen_edge.bundle import lockfile
from qwen_edge.bundle.lockfile import lock_differences, lock_text


def install(
    site: Path, name: str, version: str, *requires: str, record: str = "", url: object = None
) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {each}" for each in requires),
    ]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    if record:
        (folder / "RECORD").write_text(record)
    if url is not None:
        (folder / "direct_url.json").write_text(json.dumps(url))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment of its own."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(lockfile, "chosen_build", lambda: None)
    return tmp_path


def entries(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.partition("==")[0]: line.partition("==")[2].partition("  #")[0] for line in lines}


def test_what_is_needed_here_is_locked_with_its_markers(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "a>=1",
        "b ; os_name != 'none'",
        "c ; os_name == 'none'",
        "d",
        "x ; extra == 'onnx'",
        "not a requirement ]",
    ]
    monkeypatch.setattr(lockfile, "_own_requirements", lambda: wanted)
    install(site, "a", "1.0", "below ; sys_platform != 'vms'", "e[more]")
    install(site, "b", "2.0", "below2", "d")
    install(site, "below", "0.1", "a")
    install(site, "below2", "0.2 ".strip())
    install(site, "c", "3")
    install(site, "d", "4")
    install(site, "e", "5", "f ; extra == 'more'", "g ; extra == 'other'")
    install(site, "f", "6")
    install(site, "g", "7")
    install(site, "x", "8")
    found = entries(lock_text())
    assert found == {
        "a": "1.0",
        "b": '2.0 ; (os_name != "none")',
        "below": '0.1 ; (sys_platform != "vms")',
        "below2": '0.2 ; (os_name != "none")',
        "d": "4",
        "e": "5",
        "f": "6",
    }
    assert "x" in entries(lock_text(("onnx",)))
    for name, rest in found.items():
        Requirement(f"{name}=={rest}")


def test_digests_are_those_an_installation_keeps(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockfile, "_own_requirements", lambda: ["a", "b", "c"])
    record = "a/__init__.py,sha256=AAA,3\n../../bin/a,sha256=BBB,9\na-1.dist-info/RECORD,,\na-1.dist-info/{},sha256={},5\n"
    install(site, "a", "1", record=record.format("INSTALLER", "CCC"))
    install(site, "b", "1", url={"url": "file:///b.whl", "archive_info": {"hashes": {"sha256": "ab" * 32}}})
    install(site, "c", "1", url={"archive_info": "nonsense"})
    lines = lock_text().splitlines()
    assert f"b==1  # archive {'ab' * 32}" in lines
    assert "c==1" in lines
    [line] = [line for line in lines if line.startswith("a==1")]
    assert line.startswith("a==1  # contents ")
    other = lockfile._contents_digest(metadata.distribution("a"))
    assert line.endswith(str(other))
    # Another installer writes other things of its own.
    (site / "a-1.dist-info" / "RECORD").write_text(record.format("REQUESTED", "DDD"))
    assert lockfile._contents_digest(metadata.distribution("a")) == other
    (site / "a-1.dist-info" / "RECORD").write_text(record.format("METADATA", "DDD"))
    assert lockfile._contents_digest(metadata.distribution("a")) != other


def test_what_differs_is_said(site: Path) -> None:
    install(site, "a", "1.0")
    install(site, "b", "2.0")
    text = (
        '# a comment\na==1.0  # contents 00\nb==1.9 ; (os_name != "none")  # contents 00\n'
        'c==3 ; os_name == "none"\nd==4 ; (sys_platform != "vms")\nnonsense\ne==5 ; )(\n'
    )
    assert lock_differences(text) == ["b is 2.0 here, 1.9 was bundled", "d 4 is not installed here"]


def test_this_environment_is_as_it_locks_itself() -> None:
    text = lock_text()
    assert lock_differences(text) == []
    assert {"click", "jinja2", "numpy", "packaging"} <= set(entries(text))
    assert "qwen-edge" not in entries(text)
    assert {"onnxruntime", "tokenizers"} <= set(entries(lock_text(("onnx",))))


@given(st.text(max_size=200))
def test_any_text_can_be_compared(text: str) -> None:
    assert isinstance(lock_differences(text), list)
