"""How commands print: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_WITHOUT_TERMINAL = 4096

F = TypeVar("F", bound=Callable[..., Any])


def format_option(function: F) -> F:
    """Add `--format human|json` as the parameter `output_format`."""
    option = click.option(
        "--format",
        "output_format",
        type=click.Choice(["human", "json"]),
        default="human",
        show_default=True,
        help="What stdout carries: text for people, or one JSON document.",
    )
    return option(function)


def print_json(data: Any) -> None:
    """Write `data` to stdout as one JSON document."""
    click.echo(json.dumps(data, ensure_ascii=False, indent=2))


def note(text: str) -> None:
    """Write a line for the person at the terminal to stderr."""
    click.echo(text, err=True)


def wants_colour(stream: TextIO) -> bool:
    """Return whether colour and other styles may be written to a stream.

    Source: no-color.org for NO_COLOR, bixense.com/clicolors for CLICOLOR and CLICOLOR_FORCE.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") != "0":
        return True
    return can_redraw(stream) and os.environ.get("CLICOLOR") != "0"


def can_redraw(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that moves its cursor: no pipe, no file, no TERM=dumb."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def styled(text: str, stream: TextIO, **style: bool) -> str:
    """Return text in a style (bold=True, dim=True) where the stream wants one, else as it is."""
    return click.style(text, **style) if wants_colour(stream) else text


def console_on(stream: TextIO) -> Console:
    """Return a rich console on a stream, without escape codes where none are wanted.

    Into a file or another program lines are as long as they need to be, unless COLUMNS says otherwise.
    """
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> None:
            raise  # called while the error is handled; rich's own would leave with exit code 1

    has_width = stream.isatty() or bool(os.environ.get("COLUMNS"))
    return Ours(
        file=stream,
        highlight=False,
        color_system="auto" if wants_colour(stream) else None,
        force_terminal=can_redraw(stream) or wants_colour(stream),
        width=None if has_width else _WIDTH_WITHOUT_TERMINAL,
    )


def format_bytes(size_bytes: float) -> str:
    """Return a size in decimal units, as file managers and hubs show it: 491.4 MB."""
    for unit in ("B", "kB", "MB"):
        if abs(size_bytes) < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"
