"""Progress on stderr: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from qwen_edge.cli.output import can_redraw, console_on, format_bytes, note

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

# Between two lines where nothing can be redrawn: short work says nothing, a log of long work stays short.
PLAIN_LINE_EVERY_S = 10.0

Show = Callable[[int, int], None]


@contextlib.contextmanager
def byte_progress(label: str) -> Iterator[Show]:
    """Show progress in bytes while the block runs; yields the callback (done, total)."""
    if not can_redraw(sys.stderr):
        yield _plain_lines(label, lambda done, total: f"{format_bytes(done)} of {format_bytes(total)}")
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    with _bar(label, (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                      TimeRemainingColumn())) as show:  # fmt: skip
        yield show


@contextlib.contextmanager
def round_progress(label: str) -> Iterator[Show]:
    """Show progress in rounds while the block runs; yields the callback (done, total)."""
    if not can_redraw(sys.stderr):
        yield _plain_lines(label, lambda done, total: f"round {done} of {total}")
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    with _bar(label, (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())) as show:  # fmt: skip
        yield show


@contextlib.contextmanager
def _bar(label: str, columns: tuple[ProgressColumn, ...]) -> Iterator[Show]:
    from rich.progress import Progress

    with Progress(*columns, console=console_on(sys.stderr), transient=True) as display:
        task = display.add_task(label, total=None)
        yield lambda done, total: display.update(task, completed=done, total=total)


def _plain_lines(label: str, words: Callable[[int, int], str]) -> Show:
    """Return a callback that prints a line when the last one is old enough; the first after the same time."""
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_LINE_EVERY_S:
            last = now
            share = f" ({done / total:.0%})" if total else ""
            note(f"{label}: {words(done, total)}{share}")

    return show
