"""`doctor --fix`: what the advices say, as far as it can be done without asking and without root."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from qwen_edge import paths
from qwen_edge.doctor.report import FixKind, Report
from qwen_edge.errors import QwenEdgeError
from qwen_edge.files import stale_parts


def mend(report: Report, say: Callable[[str], None]) -> tuple[str, ...]:
    """Do what the findings of a report say that can be done.

    Args:
        report: With the fixes.
        say: Told how far a build is.

    Returns:
        A sentence for each fix: done, or why not.
    """
    ways: dict[FixKind, Callable[[Callable[[str], None]], str]] = {
        "folder": _make_folder,
        "leftovers": _remove_leftovers,
        "build": _build,
    }
    # The folder first: a build goes there.
    kinds = [fix.kind for fix in report.fixes]
    done = []
    for kind, way in ways.items():
        if kind in kinds:
            try:
                done.append(way(say))
            except (QwenEdgeError, OSError) as error:
                done.append(f"failed: {error}")
    return tuple(done)


def changes(before: Report, after: Report) -> tuple[str, ...]:
    """Return what is different after a fix, a sentence for each check, and what was found first only."""
    new = {(check.group, check.name): check for check in after.checks}
    lines = []
    for check in before.checks:
        now = new.get((check.group, check.name))
        if now is None:
            lines.append(f"gone: {check.found}")
        elif now.status != check.status:
            lines.append(f"{check.status} before: {check.found}; {now.status} now: {now.found}")
    return tuple(lines)


def _make_folder(_say: Callable[[str], None]) -> str:
    folder = paths.cache_root()
    folder.mkdir(parents=True, exist_ok=True)
    return f"made {folder}"


def _remove_leftovers(_say: Callable[[str], None]) -> str:
    removed_bytes = count = 0
    for path in tuple(stale_parts(paths.cache_root())):
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            count, removed_bytes = count + 1, removed_bytes + size
    return f"removed {count} files of runs that were killed, {removed_bytes / 1e6:,.1f} MB"


def _build(say: Callable[[str], None]) -> str:
    from qwen_edge.native.build import ensure_build, plan_here

    build = ensure_build(plan_here(), say=say)
    return f"built the library for this CPU: {build.package}"
