"""What a build needs, on machines that lack it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import NativeError
from qwen_edge.native import build_needs


def test_pip_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Environments of uv and plain Debians have none: these tests may run there too.
    monkeypatch.setattr(build_needs.importlib.util, "find_spec", lambda name: name)
    assert build_needs.pip_command(tmp_path)[:3] == [sys.executable, "-m", "pip"]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find_spec(name, *rest)
    )


@pytest.mark.usefixtures("without_pip")
def test_an_environment_without_pip_gets_one_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def make(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        Path(command[-1]).mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", make)
    for _ in range(2):
        command = build_needs.pip_command(tmp_path)
        assert command[:3] == [str(tmp_path / "pip" / "bin" / "python"), "-m", "pip"]
    assert commands == [[sys.executable, "-m", "venv", "--clear", str(tmp_path / "pip")]]


@pytest.mark.usefixtures("without_pip")
def test_without_pip_and_venv_it_is_said_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "No module")
    )
    with pytest.raises(NativeError, match=r"the build needs pip(?s:.*)uv pip install pip.*python3-pip"):
        build_needs.pip_command(tmp_path)


def test_a_missing_compiler_is_an_error_with_the_systems_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NativeError) as caught:
        build_needs.check_tools()
    assert "a C++ compiler (looked for no-such-compiler)" in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("Install with:\n")
    assert "Then run qwen-edge setup again" in caught.value.hint


def test_what_is_kept_is_not_needed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_needs, "free_disk_bytes", lambda folder: 500_000_000)
    with pytest.raises(NativeError, match=r"needs 700 MB .* 500 MB are free"):
        build_needs.check_disk(tmp_path, 0)
    build_needs.check_disk(tmp_path, 300_000_000)


def test_free_space_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    assert build_needs.free_disk_bytes(tmp_path / "not" / "yet") > 0
