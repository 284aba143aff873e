"""The table of all levels, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from qwen_edge import __version__
from tests.arm64.levels import Level
from tests.arm64.results import LevelResult

# Of the features, those that llama.cpp has kernels for.
_TELLING = ("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme")
_COLUMNS = ("level", "features", "kernels", "tests", "passed", "failed", "skipped", "smoke", "time")


def write_report(folder: Path, results: Sequence[LevelResult], levels: Sequence[Level], wheel: str) -> Path:
    """Write report.md and report.json into a folder and return the first.

    Args:
        folder: An existing folder.
        results: One for each level.
        levels: The levels, for what they stand for.
        wheel: Name of the library's wheel.
    """
    document = {
        "schema": "qwen-edge/arm64/1",
        "version": __version__,
        "wheel": wheel,
        "levels": [result.to_dict() for result in results],
    }
    (folder / "report.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# qwen-edge {__version__} on emulated ARM processors",
        "",
        f"The library: {wheel}",
        "",
        table(results),
    ]
    lines += ["", *(f"- {level.name} (QEMU's {level.qemu_cpu}): {level.devices}" for level in levels)]
    lines += ["", *details(results)]
    report = folder / "report.md"
    report.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return report


def table(results: Sequence[LevelResult]) -> str:
    """Return one row a level, in Markdown."""
    rows = [_COLUMNS, tuple("-" * len(column) for column in _COLUMNS)]
    for result in results:
        counts = result.tests
        features = [name for name in _TELLING if name in result.features]
        passed = len(result.smoke) - len(result.failed_steps)
        rows.append(
            (
                result.name,
                " ".join(features),
                result.module,
                result.selection,
                *(
                    (str(counts.passed), str(counts.failed), str(counts.skipped))
                    if counts
                    else ("none ran", "", "")
                ),
                f"{passed} of {len(result.smoke)}" if result.smoke else "did not end",
                f"{(result.smoke_s + result.tests_s) / 60:.0f} min",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def details(results: Sequence[LevelResult]) -> list[str]:
    """Return lines that name what failed and why tests were skipped."""
    lines = []
    for result in results:
        counts = result.tests
        found = [f"- {problem}" for problem in result.problems]
        found += [f"- step {step['name']}: {step['problem']}" for step in result.smoke if step["problem"]]
        found += [f"- failed: {name}" for name in (counts.failures if counts else ())]
        found += [
            f"- {count} skipped: {reason}" for reason, count in (counts.skips if counts else {}).items()
        ]
        if found:
            lines += [f"## {result.name}", "", *found, ""]
    return lines
