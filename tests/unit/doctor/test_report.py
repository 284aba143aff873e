"""The verdict over all checks, and checks that fail themselves."""

from __future__ import annotations

import json

import pytest

from qwen_edge.doctor.report import Check, Fix, Report, Status, guarded
from qwen_edge.errors import ConfigError


def check(status: Status, name: str = "a", *, advice: str = "", fix: Fix | None = None) -> Check:
    return Check(group="G", name=name, status=status, found=f"{name} is {status}", advice=advice, fix=fix)


def test_all_is_well() -> None:
    report = Report(checks=(check("ok"), check("note", advice="pip install x")))
    assert (report.exit_code, report.verdict, report.next_step) == (0, "All is well.", "qwen-edge list")


def test_a_warning_is_no_failure() -> None:
    report = Report(checks=(check("ok"), check("warning", "b", advice="do b")))
    assert report.exit_code == 0
    assert report.verdict == "It works, not as well as it could: b is warning"
    assert report.next_step == "do b"


def test_a_problem_comes_first_and_one_that_can_be_mended_before_others() -> None:
    fix = Fix(kind="build", does="build it")
    report = Report(
        checks=(
            check("warning", "a", advice="do a"),
            check("problem", "b"),
            check("problem", "c", advice="do c", fix=fix),
            check("problem", "d", fix=fix),
        )
    )
    assert report.exit_code == 1
    assert report.worst.name == "c"
    assert report.verdict == "Something does not work (and 2 more): c is problem"
    assert report.next_step == "qwen-edge doctor --fix"
    assert report.fixes == (fix,)


def test_json_has_all_of_it() -> None:
    document = json.loads(json.dumps(Report(checks=(check("problem", advice="do a"),)).to_dict()))
    assert document == {
        "verdict": "Something does not work: a is problem",
        "next": "do a",
        "exit_code": 1,
        "checks": [
            {
                "group": "G",
                "name": "a",
                "status": "problem",
                "found": "a is problem",
                "cost": "",
                "advice": "do a",
                "fix": None,
            }
        ],
    }


@pytest.mark.parametrize(
    ("error", "found", "advice"),
    [
        (ConfigError("no such thing", hint="Say another."), "no such thing", "Say another."),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero", "QWEN_EDGE_DEBUG=1 qwen-edge doctor"),
        (OSError(5, "I/O error"), "OSError: [Errno 5] I/O error", "QWEN_EDGE_DEBUG=1 qwen-edge doctor"),
    ],
)
def test_a_check_that_fails_is_a_finding(error: Exception, found: str, advice: str) -> None:
    def look() -> Check:
        raise error

    (finding,) = guarded("G", "a", look)
    assert finding.status == "warning"
    assert finding.found == f"this could not be looked at: {found}"
    assert finding.advice == advice


def test_an_interrupt_is_none() -> None:
    def look() -> Check:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded("G", "a", look)
