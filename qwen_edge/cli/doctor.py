"""`qwen-edge doctor`: what is wrong here, what it costs, and the command that mends it."""

from __future__ import annotations

import contextlib
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.output import can_redraw, console_on, format_option, note, print_json
from qwen_edge.config import DEFAULT_N_CTX

if TYPE_CHECKING:
    from rich.console import Console

    from qwen_edge.doctor import Check, Report

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}
_STATUS_WIDTH = max(map(len, _STYLES)) + 1


@click.command("doctor")
@click.argument("name", required=False, metavar="[NAME_OR_FILE]")
@click.option(
    "--n-ctx",
    type=click.IntRange(min=16),
    default=DEFAULT_N_CTX,
    show_default=True,
    help="Context that is to fit too, in tokens.",
)
@click.option("--fix", "is_fixing", is_flag=True, help="Do what the report advises, then look again.")
@click.option("--quick", "is_quick", is_flag=True, help="Measure no speeds.")
@format_option
def command(name: str | None, n_ctx: int, is_fixing: bool, is_quick: bool, output_format: str) -> None:
    """Look at this machine, the native library, disk, hub and memory, and say what is wrong.

    NAME_OR_FILE is the model that is to fit in memory: qwen3-0.6b@q4_0, ./model.gguf. The native library is tried in
    child processes; measuring takes 20 s at most.

    Exit codes: 0 nothing is wrong, or it could be better; 1 something does not work; 2 wrong usage; 130 interrupted.
    """
    from qwen_edge.doctor import examine

    with _progress() as say:
        report = examine(name, n_ctx=n_ctx, is_quick=is_quick, say=say)
    if not is_fixing:
        _show(report, output_format)
        click.get_current_context().exit(report.exit_code)

    from qwen_edge.doctor.mending import changes, mend

    # A build has much to say, and takes minutes: line by line.
    done = mend(report, note)
    after = report
    if done:
        with _progress() as say:
            after = examine(name, n_ctx=n_ctx, is_quick=is_quick, say=say)
    _show(after, output_format, done=done, changed=changes(report, after))
    click.get_current_context().exit(after.exit_code)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Give a function that shows on stderr what is going on; silent where stderr is no terminal."""
    console = console_on(sys.stderr)
    if not can_redraw(sys.stderr):
        yield lambda text: None
        return
    with console.status("looking") as status:
        yield lambda text: status.update(f"{text} ...")


def _show(
    report: Report, output_format: str, *, done: tuple[str, ...] = (), changed: tuple[str, ...] = ()
) -> None:
    if output_format == "json":
        print_json({**report.to_dict(), "done": list(done), "changed": list(changed)})
        return
    print_report(console_on(sys.stdout), report, done=done, changed=changed)


def print_report(
    console: Console, report: Report, *, done: tuple[str, ...] = (), changed: tuple[str, ...] = ()
) -> None:
    """Write a report for people: the verdict and the next command first, then every check.

    Args:
        console: Where to; its width and colour are kept.
        report: What was found.
        done: What --fix did.
        changed: What is different since.
    """
    worst = report.worst
    for title, lines in (("Done", done), ("Changed", changed)):
        for line in lines:
            _print_lines(console, f"{title}: {line}", "dim")
    _print_lines(console, report.verdict, _STYLES[worst.status])
    if worst.cost and worst.status in ("warning", "problem"):
        _print_lines(console, f"That costs: {worst.cost}.")
    _print_lines(console, f"Next: {report.next_step}", "bold")
    if report.next_step.endswith("--fix"):
        _print_lines(console, f"It will {'; '.join(fix.does for fix in report.fixes)}.", indent=6)
    for group, checks in itertools.groupby(report.checks, key=lambda check: check.group):
        console.print()
        _print_lines(console, group, "bold")
        for check in checks:
            _print_check(console, check)


def _print_lines(console: Console, text: str, style: str = "", *, indent: int = 0) -> None:
    from rich.text import Text

    for line in _wrapped(text, console.width - indent):
        console.print(Text(" " * indent + line, style=style), soft_wrap=True)


def _print_check(console: Console, check: Check) -> None:
    """Write one check with its lines under each other; paths may be longer than a line, and are not broken."""
    from rich.text import Text

    width = console.width - _STATUS_WIDTH - 2
    lines = _wrapped(check.found, width)
    if check.cost:
        lines += _wrapped(f"costs: {check.cost}", width)
    advice = _wrapped(f"-> {check.advice}", width) if check.advice else []
    for i, line in enumerate([*lines, *advice]):
        status = Text(f"  {check.status if i == 0 else '':{_STATUS_WIDTH}}", style=_STYLES[check.status])
        console.print(status + Text(line, style="bold" if i >= len(lines) else ""), soft_wrap=True)


def _wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a text; words longer than a line, paths mostly, stay whole."""
    return textwrap.wrap(text, max(20, width), break_long_words=False, break_on_hyphens=False)
