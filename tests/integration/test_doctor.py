"""doctor with the real library, in child processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_edge import paths
from qwen_edge.cli.main import main
from qwen_edge.native import builds

Capture = pytest.CaptureFixture[str]


def examine(capsys: Capture, *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--quick", "--format", "json", *options])
    document = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in document["checks"]}
    assert not any("could not be looked at" in check["found"] for check in document["checks"])
    return code, checks


def test_the_library_of_this_environment(capsys: Capture) -> None:
    code, checks = examine(capsys, "qwen3-0.6b@q4_0", "--n-ctx", "256")
    assert code == 0
    assert checks["selftest"]["status"] == "ok"
    assert "qwen3-0.6b as Q4_0 needs" in checks["fit"]["found"]
    assert checks["speed"]["found"] == "speed: not measured (--quick)"
    assert not paths.cache_root().exists(), "looking leaves nothing behind"


def test_a_library_that_does_not_load_is_named_with_the_variable(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What LLAMA_CPP_LIB_PATH names is tried, found wanting, and left to the person who set it."""
    # Tests before this one may have loaded a library into this process.
    monkeypatch.setattr(builds, "_used", None)
    assert builds.chosen_build() is not None
    for name in ("libllama.so", "libggml-cpu.so"):
        (tmp_path / name).write_bytes(b"no library")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    code, checks = examine(capsys)
    assert code == 1
    assert checks["selftest"]["found"].startswith("the library does not load")
    assert checks["selftest"]["advice"] == "unset LLAMA_CPP_LIB_PATH"
    assert checks["selftest"]["fix"] is None
    assert checks["library"]["status"] == "note"
