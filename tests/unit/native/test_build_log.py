from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qwen_edge.native import build_log


def test_progress_is_the_last_counter_of_ninja_or_make() -> None:
    log = "  [1/83] /usr/bin/c++ -c a.cpp\n  note: [9/9]\n  [27/83] /usr/bin/c++ -c b.cpp\n"
    assert build_log.progress_in(log) == ": 27 of 83 steps"
    assert build_log.progress_in("  [  3%] Building C object\n  [ 14%] Building CXX object\n") == ": 14%"
    assert build_log.progress_in("Preparing metadata") == ""


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("c++: error: No space left on device", "The disk is full"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "qwen-edge setup --jobs 1"),
        ("ERROR: No matching distribution found for llama-cpp-python==9", "The package index did not answer"),
        ("c++: error: unrecognized command-line option '-fno'", "Look at CMAKE_ARGS, CFLAGS"),
    ],
)
def test_a_known_failure_says_what_to_do(output: str, remedy: str) -> None:
    assert remedy in build_log.Outcome(exit_code=1, output=output).remedy


def test_an_unknown_failure_is_told_with_its_end(tmp_path: Path) -> None:
    said: list[str] = []
    code = "print('error: unknown type name'); raise SystemExit(3)"
    log = tmp_path / "log"
    log.write_text("Killed: of an earlier step\n")
    outcome = build_log.run_logged([sys.executable, "-c", code], os.environ, log, said.append)
    assert (outcome.exit_code, outcome.output, outcome.remedy) == (3, "error: unknown type name\n", "")
    error = build_log.failure("building it", outcome, log, said.append)
    assert error.message == f"building it failed (exit code 3); the whole log is {log}"
    assert error.hint is not None
    assert "qwen-edge setup --force" in error.hint
    assert said[-1] == "  | error: unknown type name"


def test_progress_is_said_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_log, "_PROGRESS_EVERY_S", 0.05)
    said: list[str] = []
    waits = tmp_path / "go"
    code = (
        "import pathlib, sys, time\nprint('[3/9] c++', flush=True)\n"
        f"while not pathlib.Path({str(waits)!r}).exists(): time.sleep(0.02)"
    )

    def say(text: str) -> None:
        said.append(text)
        if text.endswith(": 3 of 9 steps"):
            waits.touch()

    outcome = build_log.run_logged([sys.executable, "-c", code], os.environ, tmp_path / "log", say)
    assert outcome.exit_code == 0
    assert said[-1].endswith("s: 3 of 9 steps")
