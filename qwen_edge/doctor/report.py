"""What doctor finds: checks, each with its own outcome, and the verdict over all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qwen_edge.errors import QwenEdgeError

Status = Literal["ok", "note", "warning", "problem"]
FixKind = Literal["build", "folder", "leftovers"]

_RANK: dict[Status, int] = {"problem": 0, "warning": 1, "note": 2, "ok": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """What `--fix` would do about a finding.

    Attributes:
        kind: Which of the ways to mend something.
        does: The same for people, as a sentence.
    """

    kind: FixKind
    does: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        group: Heading that it stands under.
        name: What was looked at, unique in its group.
        status: "problem" keeps something from working, "warning" costs something, "note" is good to know.
        found: What is so, one sentence.
        cost: What that costs; measured, where a figure stands in it.
        advice: The command that mends it, or what else to do.
        fix: What `--fix` would do; None where it cannot.
    """

    group: str
    name: str
    status: Status
    found: str
    cost: str = ""
    advice: str = ""
    fix: Fix | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All checks, in the order in which they are shown."""

    checks: tuple[Check, ...]

    @property
    def worst(self) -> Check:
        """The first of the gravest findings; of equals, one that something can be done about."""
        return min(self.checks, key=lambda check: (_RANK[check.status], not (check.fix or check.advice)))

    @property
    def exit_code(self) -> int:
        """1 with a problem, else 0."""
        return 1 if self.worst.status == "problem" else 0

    @property
    def verdict(self) -> str:
        """One or two sentences: how things stand, and what matters most."""
        worst = self.worst
        more = sum(check.status == worst.status for check in self.checks) - 1
        others = f" (and {more} more)" if more else ""
        if worst.status == "problem":
            return f"Something does not work{others}: {worst.found}"
        if worst.status == "warning":
            return f"It works, not as well as it could{others}: {worst.found}"
        return "All is well."

    @property
    def next_step(self) -> str:
        """The command to type next."""
        worst = self.worst
        if worst.status in ("ok", "note"):
            return "qwen-edge list"
        return "qwen-edge doctor --fix" if worst.fix else worst.advice

    @property
    def fixes(self) -> tuple[Fix, ...]:
        """What `--fix` would do, each kind once."""
        by_kind = {check.fix.kind: check.fix for check in self.checks if check.fix}
        return tuple(by_kind.values())

    def find(self, name: str) -> Check | None:
        """Return the check of that name."""
        return next((check for check in self.checks if check.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {
            "verdict": self.verdict,
            "next": self.next_step,
            "exit_code": self.exit_code,
            "checks": [asdict(check) for check in self.checks],
        }


def guarded(group: str, name: str, look: Callable[[], Iterable[Check] | Check]) -> list[Check]:
    """Return what a check finds; one that fails itself becomes a finding, for the others are still wanted.

    Args:
        group: Heading of the finding.
        name: Of the check.
        look: The check.
    """
    try:
        found = look()
        return [found] if isinstance(found, Check) else list(found)
    except Exception as error:
        if os.environ.get("QWEN_EDGE_DEBUG") == "1":
            raise
        message = error.message if isinstance(error, QwenEdgeError) else f"{type(error).__name__}: {error}"
        hint = (error.hint or "") if isinstance(error, QwenEdgeError) else ""
        return [
            Check(
                group=group,
                name=name,
                status="warning",
                found=f"this could not be looked at: {message}",
                advice=hint or "QWEN_EDGE_DEBUG=1 qwen-edge doctor",
            )
        ]
