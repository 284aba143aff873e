"""What `--fix` does, and what it says has changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qwen_edge import paths
from qwen_edge.doctor.mending import changes, mend
from qwen_edge.doctor.report import Check, Fix, FixKind, Report, Status
from qwen_edge.errors import NativeError
from qwen_edge.native import build as native_build
from qwen_edge.native.builds import Build


def report(*kinds: FixKind) -> Report:
    return Report(
        checks=tuple(
            Check(group="G", name=kind, status="warning", found=kind, fix=Fix(kind=kind, does=f"do {kind}"))
            for kind in kinds
        )
    )


def check(name: str, status: Status, found: str) -> Check:
    return Check(group="G", name=name, status=status, found=found)


def test_nothing_to_do() -> None:
    assert mend(Report(checks=(check("a", "ok", "well"),)), print) == ()


def test_folder_and_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    monkeypatch.setenv("QWEN_EDGE_CACHE", str(tmp_path / "new"))
    stale = tmp_path / "new" / "models" / f".m.gguf.{process.pid}.x.part"
    assert mend(report("folder"), print) == (f"made {paths.cache_root()}",)
    stale.parent.mkdir()
    stale.write_bytes(bytes(1_500_000))
    kept = stale.with_name("m.gguf")
    kept.touch()
    assert mend(report("leftovers"), print) == ("removed 1 files of runs that were killed, 1.5 MB",)
    assert [path.name for path in stale.parent.iterdir()] == ["m.gguf"]


def test_a_build_is_made_after_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []

    def ensure(plan: object, *, say: object) -> Build:
        assert plan == "the plan"
        assert paths.cache_root().is_dir()
        said.append("built")
        return Build(
            origin="setup",
            package=tmp_path,
            library=tmp_path,
            version=None,
            key="k",
            cpu_features=(),
            flags=None,
            compiler=None,
            target=None,
        )

    monkeypatch.setattr(native_build, "plan_here", lambda: "the plan")
    monkeypatch.setattr(native_build, "ensure_build", ensure)
    done = mend(report("build", "folder"), print)
    assert done == (f"made {paths.cache_root()}", f"built the library for this CPU: {tmp_path}")
    assert said == ["built"]


def test_a_build_that_fails_is_told_and_the_rest_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NativeError("no compiler", hint="apt-get install g++")

    monkeypatch.setattr(native_build, "plan_here", refuse)
    made, failed = mend(report("build", "folder"), print)
    assert made.startswith("made ")
    assert failed == "failed: no compiler\n  apt-get install g++"


def test_what_has_changed() -> None:
    before = Report(
        checks=(check("a", "problem", "it crashes"), check("b", "ok", "b"), check("c", "note", "old files"))
    )
    after = Report(checks=(check("a", "ok", "it computes"), check("b", "ok", "b anew")))
    assert changes(before, after) == (
        "problem before: it crashes; ok now: it computes",
        "gone: old files",
    )
