"""`qwen-edge du`: what is kept on the disk, and what frees it."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from qwen_edge.cli.output import console_on, format_bytes, format_option, note, print_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qwen_edge.stored import Stored

_KINDS = {
    "model": "model",
    "checkpoint": "checkpoint",
    "repository": "Hugging Face",
    "partial": "unfinished",
    "native": "llama.cpp",
    "prefix-cache": "prefix cache",
    "history": "history",
    "records": "records",
    "other": "other",
}


@click.command("du")
@format_option
def command(output_format: str) -> None:
    """Show everything that qwen-edge keeps, what it takes of the disk, and what removes it.

    Of the cache of Hugging Face, which other programs share, only repositories that were pulled here or are in
    `qwen-edge list`.
    """
    from qwen_edge.paths import cache_root
    from qwen_edge.stored import stored_files

    stored = stored_files()
    total_bytes = sum(item.size_bytes for item in stored)
    if output_format == "json":
        print_json(
            {
                "cache": str(cache_root()),
                "total_bytes": total_bytes,
                "stored": [as_json(item) for item in stored],
            }
        )
        return
    show_table(stored, with_path=False)
    note(f"{format_bytes(total_bytes)} in {cache_root()}" + _elsewhere(stored))
    if stored:
        note("Next: qwen-edge rm with what the last column says; --dry-run only shows what would go.")


def as_json(item: Stored) -> dict[str, Any]:
    """Return a thing as JSON types; of its catalog row the name."""
    data = {field.name: getattr(item, field.name) for field in fields(item)}
    data |= {"path": str(item.path), "model": item.model.name if item.model is not None else None}
    return data | {"extras": [str(path) for path in item.extras], "locks": [str(path) for path in item.locks]}


def show_table(stored: Sequence[Stored], *, with_path: bool) -> None:
    """Print one line a thing: what, how large, and where it is or what removes it."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("Name", overflow="fold")
    table.add_column("Type" if with_path else "Kind", overflow="fold")
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Where" if with_path else "qwen-edge rm", overflow="fold")
    for item in stored:
        kind = " ".join(item.types) if with_path else _KINDS[item.kind]
        last = str(item.path) if with_path else "(in use)" if item.is_needed else item.remove
        table.add_row(item.name, kind, format_bytes(item.size_bytes), last)
    console_on(sys.stdout).print(table)


def _elsewhere(stored: Iterable[Stored]) -> str:
    return " and the cache of Hugging Face" if any(item.kind == "repository" for item in stored) else ""
