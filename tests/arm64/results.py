"""What came of a level: the counts of its tests, the steps of its smoke test."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


@dataclass(frozen=True, kw_only=True)
class TestCounts:
    """The outcome of a pytest run.

    Attributes:
        passed, failed, skipped: Numbers of tests; errors count as failed.
        failures: Names of those that failed.
        skips: Reasons to how many tests they skipped.
    """

    __test__ = False  # for pytest, which takes the name for a test

    passed: int
    failed: int
    skipped: int
    failures: tuple[str, ...] = ()
    skips: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """What came of a level.

    Attributes:
        name: Of the level.
        qemu_cpu: Of the emulator; "" for the machine itself.
        features: What programs see of the processor.
        selection: Which tests were run.
        smoke: The steps, as tests/arm64/smoke.py writes them; () where it wrote nothing.
        tests: None where pytest wrote nothing, or was not run.
        smoke_s, tests_s: Wall-clock times.
        problems: What else went wrong.
    """

    name: str
    qemu_cpu: str
    features: tuple[str, ...]
    selection: str
    smoke: tuple[dict[str, Any], ...]
    tests: TestCounts | None
    smoke_s: float
    tests_s: float
    problems: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The kernels that were loaded; "?" where that step failed."""
        facts = next((step["facts"] for step in self.smoke if step["name"] == "kernels"), {})
        return str(facts.get("module") or "?")

    @property
    def failed_steps(self) -> tuple[str, ...]:
        """Names of the smoke test's steps that failed."""
        return tuple(step["name"] for step in self.smoke if step["problem"])

    @property
    def is_right(self) -> bool:
        """Whether everything ran and nothing failed."""
        ran = bool(self.smoke) and (
            self.selection == "none" or (self.tests is not None and self.tests.passed > 0)
        )
        return ran and not (self.failed_steps or self.problems or (self.tests and self.tests.failed))

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {**asdict(self), "module": self.module, "is_right": self.is_right}


def read_junit(file: Path) -> TestCounts | None:
    """Return the counts of a junit file of pytest; None where there is none, or it was cut off."""
    try:
        cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    except (FileNotFoundError, ElementTree.ParseError):
        return None
    failures = []
    skips: dict[str, int] = {}
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(f"{case.get('classname', '')}::{case.get('name', '')}")
        elif (skip := case.find("skipped")) is not None:
            reason = skip.get("message") or "no reason"
            skips[reason] = skips.get(reason, 0) + 1
    skipped = sum(skips.values())
    return TestCounts(
        passed=len(cases) - len(failures) - skipped,
        failed=len(failures),
        skipped=skipped,
        failures=tuple(failures),
        skips=skips,
    )


def read_smoke(file: Path) -> tuple[dict[str, Any], ...]:
    """Return the steps that a smoke test wrote; () where it did not come to that."""
    try:
        return tuple(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()
