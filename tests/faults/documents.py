"""docs/errors.md and docs/faults.md, made from the exception tree and from what the faults answered."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from qwen_edge import errors
from qwen_edge.errors import QwenEdgeError
from tests.faults.running import ROOT, read_results
from tests.faults.table import FAULTS, key

RESULTS = Path(__file__).parent / "results.json"
_MADE = "<!-- Made by: python -m tests.faults --write. Do not edit: change qwen_edge/errors.py or tests/faults/. -->"
# Source: the command line's table; above 128 as shells count a program that a signal ended.
EXIT_CODES = {
    0: "done",
    1: "failed: the error is on stderr",
    2: "wrong usage: an unknown command or option, or a value that cannot be",
    70: "a bug in qwen-edge: please report it",
    130: "interrupted (Ctrl-C)",
    141: "the reader of stdout went away; nothing is said",
    143: "ended by SIGTERM",
}


def tree_text() -> str:
    """Return the tree as it is drawn at the top of qwen_edge/errors.py, without what is said beside the names."""
    lines = [QwenEdgeError.__name__]

    def draw(cls: type[QwenEdgeError], indent: str) -> None:
        children = children_of(cls)
        for child in children:
            is_last = child is children[-1]
            lines.append(f"{indent}{'└── ' if is_last else '├── '}{child.__name__}")
            draw(child, indent + ("    " if is_last else "│   "))

    draw(QwenEdgeError, "")
    return "\n".join(lines)


def children_of(cls: type[QwenEdgeError]) -> list[type[QwenEdgeError]]:
    """Return the direct subclasses in errors.py, in its order."""
    return [child for child in cls.__subclasses__() if child.__module__ == errors.__name__]


def classes() -> list[type[QwenEdgeError]]:
    """Return all classes of the tree, parents before children."""

    def walk(cls: type[QwenEdgeError]) -> list[type[QwenEdgeError]]:
        return [cls, *(below for child in children_of(cls) for below in walk(child))]

    return walk(QwenEdgeError)


def errors_document() -> str:
    """Return docs/errors.md."""
    results = read_results(RESULTS)
    parts = [
        "# Errors",
        _MADE,
        "Every error that qwen-edge raises on purpose is of one of these classes, on the command line and in the library. "
        "A message says what was asked, what was found and where; the line below it what to do next. "
        "[faults.md](faults.md) has the messages of one fault after the other.",
        f"```\n{tree_text()}\n```",
        "## Exit codes",
        "| code | means |\n|---|---|\n"
        + "\n".join(f"| {code} | {what} |" for code, what in EXIT_CODES.items()),
    ]
    for cls in classes():
        about = inspect.getdoc(cls) or ""
        parts += [
            f"## {cls.__name__}",
            about.partition("\n")[0],
            f"**Cause.** {cls.cause}",
            f"**Cure.** {cls.cure}",
        ]
        example = next((row.message for row in results.values() if row.error == cls.__name__), None)
        if example:
            parts.append(f"```\n{example}\n```")
    return "\n\n".join(parts) + "\n"


def faults_document() -> str:
    """Return docs/faults.md."""
    results = read_results(RESULTS)
    parts = [
        "# Faults and their messages",
        _MADE,
        f"{len(results)} faults, each brought about and run by tests/faults. `DIR` is the folder of the test, `HUB` its "
        "server, `N` a number that differs from run to run. [errors.md](errors.md) has the classes.",
    ]
    for group, faults in groupby(FAULTS, key=lambda fault: fault.group):
        rows = ["| fault | command | exit code | error | message |", "|---|---|---|---|---|"]
        for fault in faults:
            result = results.get(key(fault))
            if result is None:
                continue
            command = f"`qwen-edge {_shortened(fault.command)}`" if fault.command else "in Python"
            rows.append(
                f"| {fault.name} | {command} | {result.exit_code} | {result.error or '—'} | {_cell(result.message) or '—'} |"
            )
        parts += [f"## {group}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _shortened(command: str) -> str:
    return command if len(command) < 120 else f"{command[:80]}…"


def _cell(text: str) -> str:
    escaped = text.replace("|", "\\|").replace("<", "&lt;")
    return "<br>".join(line.strip() for line in escaped.splitlines())


DOCUMENTS: dict[Path, Callable[[], str]] = {
    ROOT / "docs" / "errors.md": errors_document,
    ROOT / "docs" / "faults.md": faults_document,
}
