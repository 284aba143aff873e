"""How commands print: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

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


def wants_colour(stream: IO[Any]) -> bool:
    """Return whether text on a stream may be dimmed and coloured: a terminal that can, and nobody asked for none.

    Source: https://no-color.org for NO_COLOR (set and not empty), https://bixense.com/clicolors for CLICOLOR=0.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("CLICOLOR") == "0":
        return False
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def stderr_console() -> Console:
    """Return a rich console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def byte_progress() -> Progress:
    """Return a progress display in bytes with speed and time left, on stderr; silent where stderr is no terminal."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=stderr_console(),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


def format_bytes(size_bytes: float) -> str:
    """Return a size in decimal units, as file managers and hubs show it: 491.4 MB."""
    for unit in ("B", "kB", "MB"):
        if abs(size_bytes) < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"
