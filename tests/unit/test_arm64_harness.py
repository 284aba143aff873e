"""The parts of tests/arm64 that need no emulator: levels, results, table, what is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from qwen_edge.native.cpu_modules import ARM_MODULES, best_module
from tests.arm64 import __main__ as harness
from tests.arm64 import root
from tests.arm64.levels import LEVELS, choose_levels, cpuinfo
from tests.arm64.report import table, write_report
from tests.arm64.results import LevelResult, TestCounts, read_junit, read_smoke
from tests.arm64.smoke import first_difference, run_step
from tests.arm64.smoke_steps import STEPS, Files, Outcome

REPOSITORY = Path(__file__).parents[2]
JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest">
  <testcase classname="tests.unit.a" name="test_right" time="0.1"/>
  <testcase classname="tests.unit.a" name="test_wrong"><failure message="assert 1 == 2">...</failure></testcase>
  <testcase classname="tests.unit.a" name="test_setup"><error message="no fixture">...</error></testcase>
  <testcase classname="tests.unit.b" name="test_left"><skipped type="pytest.skip" message="root writes anywhere"/></testcase>
  <testcase classname="tests.unit.b" name="test_left_too"><skipped type="pytest.skip" message="root writes anywhere"/></testcase>
</testsuite></testsuites>
"""
# What QEMU 7.2 shows on each level (/proc/self/auxv), of what llama.cpp has kernels for.
FEATURES = {
    "cortex-a53": {"asimd"},
    "cortex-a76": {"asimd", "asimddp", "asimdhp"},
    "max-no-sve": {"asimd", "asimddp", "asimdhp", "i8mm", "bf16"},
    "max": {"asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme"},
}


def result(**changes: Any) -> LevelResult:
    """A level on which all is well, with changes."""
    kernels = {"name": "kernels", "problem": "", "facts": {"module": "armv8.2_2"}}
    known: dict[str, Any] = {
        "name": "cortex-a76",
        "qemu_cpu": "cortex-a76",
        "features": ("asimd", "asimddp", "asimdhp", "crc32"),
        "selection": "all fast",
        "smoke": (kernels, {"name": "chat", "problem": "", "facts": {}}),
        "tests": TestCounts(passed=3, failed=0, skipped=2),
        "smoke_s": 60.0,
        "tests_s": 120.0,
    }
    return LevelResult(**{**known, **changes})


def test_each_level_has_other_kernels_and_one_runs_everything() -> None:
    assert {level.name: best_module(ARM_MODULES, FEATURES[level.name]) for level in LEVELS} == {
        level.name: level.module for level in LEVELS
    }
    assert len({level.module for level in LEVELS}) == len(LEVELS)
    assert [level.name for level in LEVELS if harness.choose_tests(level, "auto")[1] == "all fast"] == [
        "cortex-a76"
    ]


def test_levels_are_chosen_by_name() -> None:
    assert choose_levels(()) == LEVELS
    assert [level.name for level in choose_levels(["max", "cortex-a53"])] == ["cortex-a53", "max"]
    with pytest.raises(click.BadParameter, match="no level cortex-a9; there are cortex-a53, "):
        choose_levels(["cortex-a9"])


def test_cpuinfo_has_a_block_for_each_core() -> None:
    text = cpuinfo(LEVELS[0], {"fp", "asimd"}, 2)
    assert text.count("Features\t: asimd fp\n") == 2
    assert text.startswith("processor\t: 0\nBogoMIPS\t: ")
    assert "\n\nprocessor\t: 1\n" in text
    assert "CPU part\t: 0xd03\n" in text


@pytest.mark.parametrize("wanted", ["auto", "chosen"])
def test_what_is_chosen_is_there(wanted: str) -> None:
    paths, name = harness.choose_tests(LEVELS[0], wanted)
    assert name == "chosen"
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    assert harness.choose_tests(LEVELS[-1], "none") == ((), "none")


def test_junit_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "tests.xml"
    assert read_junit(file) is None
    file.write_text(JUNIT)
    counts = read_junit(file)
    assert counts == TestCounts(
        passed=1,
        failed=2,
        skipped=2,
        failures=("tests.unit.a::test_wrong", "tests.unit.a::test_setup"),
        skips={"root writes anywhere": 2},
    )
    file.write_text(JUNIT[:200])
    assert read_junit(file) is None, "pytest was killed while it wrote"


@pytest.mark.parametrize(
    ("changes", "is_right"),
    [
        ({}, True),
        ({"smoke": ()}, False),
        ({"smoke": ({"name": "chat", "problem": "other words", "facts": {}},)}, False),
        ({"tests": None}, False),
        ({"tests": None, "selection": "none"}, True),
        ({"tests": TestCounts(passed=3, failed=1, skipped=0)}, False),
        ({"tests": TestCounts(passed=0, failed=0, skipped=5)}, False),
        ({"problems": ("tests: not done after 120 min",)}, False),
    ],
)
def test_a_level_is_right_only_where_all_of_it_ran_and_passed(
    changes: dict[str, Any], is_right: bool
) -> None:
    assert result(**changes).is_right == is_right


def test_the_table_has_a_row_for_each_level() -> None:
    failed = result(name="max", smoke=(), tests=None)
    header, rule, first, second = table([result(), failed]).splitlines()
    assert header.startswith("| level | features | kernels |")
    assert set(rule) == set("| -")
    assert (
        first == "| cortex-a76 | asimd asimddp asimdhp | armv8.2_2 | all fast | 3 | 0 | 2 | 2 of 2 | 3 min |"
    )
    assert "| max |" in second
    assert "none ran" in second
    assert "did not end" in second


def test_the_report_names_what_failed_and_why_tests_were_skipped(tmp_path: Path) -> None:
    counts = TestCounts(
        passed=3, failed=1, skipped=2, failures=("tests.unit.a::test_wrong",), skips={"no pip": 2}
    )
    step = {"name": "chat", "problem": "/0: 'Rome', there 'Athens'", "facts": {}}
    text = write_report(tmp_path, [result(tests=counts, smoke=(step,))], LEVELS[1:2], "a.whl").read_text()
    for line in (
        "- step chat: /0: 'Rome', there 'Athens'",
        "- failed: tests.unit.a::test_wrong",
        "- 2 skipped: no pip",
    ):
        assert line in text
    document = json.loads((tmp_path / "report.json").read_text())
    (level,) = document["levels"]
    assert (document["schema"], level["is_right"]) == ("qwen-edge/arm64/1", False)
    assert level["tests"]["failures"] == ["tests.unit.a::test_wrong"]


def test_a_step_fails_where_its_answers_are_others_or_it_raises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def chat(files: Files) -> Outcome:
        return Outcome(answers={"q4_0": ("Athens.",)})

    def broken(files: Files) -> Outcome:
        raise ValueError("no such type")

    files = Files(tmp_path, "")
    assert run_step(chat, files, None)["problem"] == ""
    assert run_step(chat, files, {"chat": {"q4_0": ["Athens."]}})["problem"] == ""
    assert (
        run_step(chat, files, {"chat": {"q4_0": ["Rome."]}})["problem"] == "/q4_0/0: 'Athens.', there 'Rome.'"
    )
    assert run_step(chat, files, {})["problem"], "the other machine did not run it"
    assert run_step(broken, files, None)["problem"] == "ValueError: no such type"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["pass", "chat"], ["pass", "chat"], ["FAIL", "chat"], ["FAIL", "chat"], ["FAIL", "broken"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        ({"a": [1, 2]}, {"a": [1, 2]}, ""),
        ({"a": [1, 2]}, {"a": [1, 3]}, "/a/1: 3, there 2"),
        ({"a": 1}, {"a": 1, "b": 2}, "answers: {'a': 1, 'b': 2}, there {'a': 1}"),
        ([1], [1, 2], "answers: [1, 2], there [1]"),
        (None, None, ""),
    ],
)
def test_the_first_difference_is_named(expected: Any, found: Any, difference: str) -> None:
    assert first_difference(expected, found) == difference


def test_steps_have_names_of_their_own() -> None:
    names = [step.__name__ for step in STEPS]
    assert len(set(names)) == len(names) > 10


def test_a_smoke_test_that_died_left_no_steps(tmp_path: Path) -> None:
    assert read_smoke(tmp_path / "smoke.json") == ()


def test_what_is_missing_on_the_host_is_named_with_the_command_that_installs_it() -> None:
    def which(program: str) -> str | None:
        return None if program in ("debootstrap", "unshare", "setpriv") else program

    with pytest.raises(click.ClickException, match=r"apt-get install debootstrap util-linux$"):
        root.check_host(which, lambda: 0)
    with pytest.raises(click.ClickException, match="sudo make test-arm64"):
        root.check_host(str, lambda: 1000)
    root.check_host(str, lambda: 0)


def test_what_the_tests_need_is_asked_for_and_tools_for_sources_are_not() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {line.partition(">")[0].partition("=")[0] for line in root.requirements(project)}
    assert {
        "numpy",
        "click",
        "onnxruntime",
        "gguf",
        "llguidance",
        "pytest",
        "pytest-xdist",
        "hypothesis",
    } <= names
    assert not names & {"mypy", "ruff", "types-psutil", "llama-cpp-python"}
    assert not any(name.startswith("qwen-edge") for name in names)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_source_is_copied_as_git_sees_it(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "folder").mkdir(parents=True)
    for name, text in (
        (
            "pyproject.toml",
            '[project]\nname = "qwen-edge"\nversion = "1.2"\n[tool.setuptools]\npackages = []\n',
        ),
        (".gitignore", "*.gguf\n"),
        ("folder/new.py", "1"),
        ("big.gguf", "weights"),
        ("deleted.py", ""),
    ):
        (repository / name).write_text(text)
    (repository / "link").symlink_to("folder")
    git = ["git", "-C", str(repository)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "deleted.py"], check=True)
    (repository / "deleted.py").unlink()
    target = tmp_path / "target"
    (target / "stale").mkdir(parents=True)
    root.copy_source(repository, target)
    found = {path.name for path in target.iterdir()}
    assert {"pyproject.toml", ".gitignore", "folder", "link", "qwen_edge-1.2.dist-info"} <= found
    assert not found & {"big.gguf", "deleted.py", "stale"}
    assert (target / "link").is_symlink()
    assert (target / "folder/new.py").read_text() == "1"
