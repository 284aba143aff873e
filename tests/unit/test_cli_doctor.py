"""`qwen-edge doctor` from the command line: layouts, exit codes, JSON, nothing installed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_edge import doctor
from qwen_edge.cli.main import main
from qwen_edge.doctor import mending
from qwen_edge.doctor.report import Check, Fix, Report, Status
from qwen_edge.native import builds

Capture = pytest.CaptureFixture[str]

LONG = "its fast kernels crash with Q4_0, Q8_0 (signal SIGSEGV); GCC 12.2.0 made it, which miscompiles the AMX kernels"


def report(status: Status, *, fix: Fix | None = None) -> Report:
    return Report(
        checks=(
            Check(
                group="Native library",
                name="selftest",
                status=status,
                found=LONG,
                cost="slower",
                advice="qwen-edge setup",
                fix=fix,
            ),
            Check(group="Disk", name="cache", status="ok", found="the cache [/some/folder] can be written"),
        )
    )


def give(monkeypatch: pytest.MonkeyPatch, *reports: Report) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []
    left = list(reports)

    def examine(name: str | None = None, **options: Any) -> Report:
        asked.append({"name": name, **options})
        return left.pop(0)

    monkeypatch.setattr(doctor, "examine", examine)
    return asked


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("warning", 0), ("problem", 1)])
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, status: Status, code: int) -> None:
    give(monkeypatch, report(status))
    assert main(["doctor"]) == code


def test_verdict_and_next_step_are_the_first_things_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    give(monkeypatch, report("problem", fix=Fix(kind="build", does="build the library")))
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:7] == [
        "Something does not work: its fast kernels crash with Q4_0,",
        "Q8_0 (signal SIGSEGV); GCC 12.2.0 made it, which miscompiles",
        "the AMX kernels",
        "That costs: slower.",
        "Next: qwen-edge doctor --fix",
        "      It will build the library.",
        "",
    ]
    assert lines[7:] == [
        "Native library",
        "  problem its fast kernels crash with Q4_0, Q8_0 (signal",
        "          SIGSEGV); GCC 12.2.0 made it, which miscompiles",
        "          the AMX kernels",
        "          costs: slower",
        "          -> qwen-edge setup",
        "",
        "Disk",
        "  ok      the cache [/some/folder] can be written",
    ]


def test_without_a_terminal_there_is_no_colour_and_nothing_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    give(monkeypatch, report("warning"))
    main(["doctor"])
    out, err = capsys.readouterr()
    assert "\x1b" not in out
    assert err == ""
    assert all(line == line.rstrip() for line in out.splitlines())


def test_options_reach_the_checks_and_json_has_all(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    asked = give(monkeypatch, report("problem"))
    main(["doctor", "qwen3-0.6b", "--n-ctx", "512", "--quick", "--format", "json"])
    assert (asked[0]["name"], asked[0]["n_ctx"], asked[0]["is_quick"]) == ("qwen3-0.6b", 512, True)
    document = json.loads(capsys.readouterr().out)
    assert (document["exit_code"], document["next"], document["done"]) == (1, "qwen-edge setup", [])
    assert document["checks"][0]["cost"] == "slower"


def test_fix_mends_looks_again_and_says_what_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    broken = report("problem", fix=Fix(kind="build", does="build the library"))
    asked = give(monkeypatch, broken, report("ok"))
    monkeypatch.setattr(mending, "mend", lambda found, say: ("built it",) if found is broken else ())
    assert main(["doctor", "--fix"]) == 0
    assert len(asked) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Done: built it"
    assert lines[1].startswith("Changed: problem before: its fast kernels crash")
    assert "All is well." in lines


def test_fix_without_anything_to_mend_looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = give(monkeypatch, report("ok"))
    main(["doctor", "--fix"])
    assert len(asked) == 1


def test_nothing_installed_and_nothing_built(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No library, no package of any extra, no hub: every check has an outcome, and there is a next step."""
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(builds, "find_builds", lambda: ())
    for module in ("qwen_edge.doctor.situation", "qwen_edge.doctor.machine"):
        monkeypatch.setattr(f"{module}.chosen_build", lambda: None)
    monkeypatch.setattr("qwen_edge.doctor.situation.find_builds", lambda: ())
    monkeypatch.setattr("qwen_edge.doctor.situation.unfit_builds", lambda: ())
    assert main(["doctor", "--format", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    by_name = {check["name"]: check for check in document["checks"]}
    assert by_name["library"]["status"] == "problem"
    assert by_name["library"]["cost"] == "no model runs"
    assert by_name["onnxruntime"]["advice"] == 'pip install "qwen-edge[onnx]"'
    assert by_name["extras"]["advice"].startswith('pip install "qwen-edge[')
    assert {"python", "cpu", "fit", "cache", "space", "hub", "compiler"} <= by_name.keys()
    assert not any("could not be looked at" in check["found"] for check in document["checks"])
    assert document["next"]


def test_help_names_the_exit_codes(capsys: Capture) -> None:
    assert main(["doctor", "--help"]) == 0
    assert "Exit codes: 0" in capsys.readouterr().out
