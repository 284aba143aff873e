"""`qwen-edge setup` as a person sees it: the build itself is not run here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.cli.main import main
from qwen_edge.native import build, builds
from qwen_edge.native.build_plan import BuildPlan, plan_build
from qwen_edge.native.toolchain import Compiler, Cpu


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildPlan:
    """Put this test on a machine with one compiler and no build."""
    monkeypatch.setenv("QWEN_EDGE_NATIVE", str(tmp_path / "native"))
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    monkeypatch.delenv("CMAKE_BUILD_PARALLEL_LEVEL", raising=False)
    monkeypatch.setattr(builds, "_used", None)
    cpu = Cpu(architecture="x86_64", name="a CPU", features=())
    compiler = Compiler(command="c++", family="gcc", version=(14,), banner="c++ 14.2")
    plan = plan_build(cpu, compiler, {"CFLAGS": "-g"}, version="0.3.36", target="linux")
    monkeypatch.setattr(build, "plan_here", lambda: plan)
    return plan


def _make_entry(plan: BuildPlan) -> Path:
    entry = builds.builds_folder() / plan.key
    (entry / "llama_cpp" / "lib").mkdir(parents=True)
    record = {**plan.build_facts(), "package_bytes": builds.folder_bytes(entry / "llama_cpp")}
    (entry / "build.json").write_text(json.dumps(record))
    return entry


def test_the_plan_says_flags_time_and_disk(plan: BuildPlan, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["setup", "--print-plan", "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "llama-cpp-python 0.3.36 for a CPU" in shown
    assert "compiler: c++ 14.2" in shown
    assert "CFLAGS=-g: from your environment" in shown
    assert "takes about 4 min with 1 jobs" in shown
    assert "needs 700.0 MB of disk" in shown
    assert not builds.builds_folder().exists()


def test_the_plan_is_one_json_document(plan: BuildPlan, capsys: pytest.CaptureFixture[str]) -> None:
    _make_entry(plan)
    (build.work_folder(plan) / "source").mkdir(parents=True)
    assert main(["setup", "--print-plan", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["key"], facts["is_built"]) == (plan.key, True)
    assert facts["interrupted"] == str(build.work_folder(plan))
    assert facts["needed_disk_bytes"] == 700_000_000


def test_a_build_that_is_there_is_said_with_what_is_next(
    plan: BuildPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = _make_entry(plan)
    assert main(["setup"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"ready: {entry}\n"
    assert f"already built: {entry}" in shown.err
    assert "next: qwen-edge doctor" in shown.err
    assert main(["setup", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["origin"], facts["library"]) == ("setup", str(entry / "llama_cpp" / "lib"))


def test_another_library_that_is_used_instead_is_said(
    plan: BuildPlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chosen() -> Any:
        made = builds.entry_build(builds.builds_folder() / plan.key)
        assert made is not None
        return builds._describe("LLAMA_CPP_LIB_PATH", made.package, Path("/mine"), made.version)

    _make_entry(plan)
    monkeypatch.setattr(builds, "chosen_build", chosen)
    assert main(["setup"]) == 0
    assert "warning: /mine is used instead of it (LLAMA_CPP_LIB_PATH)" in capsys.readouterr().err


def test_a_missing_compiler_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["setup"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: qwen-edge cannot be set up yet. Missing:\n  - a C++ compiler")
    assert "Install with:" in error


def test_zero_jobs_are_wrong_usage() -> None:
    assert main(["setup", "--jobs", "0"]) == 2
