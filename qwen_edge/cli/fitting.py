"""What `qwen-edge plan --memory SIZE` says: of each model the type and settings that fit."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from qwen_edge.cli.output import console_on, format_bytes, note, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from qwen_edge.config import LoadConfig
    from qwen_edge.memory_fit import MemoryFit
    from qwen_edge.memory_plan import NamedFit

_SHORT_NAMES = {
    "n_batch": "batch",
    "flash_attention": "flash attention",
    "kv_type": "KV",
    "load_mode": "",
    "safe_kernels": "plain kernels",
    "n_sessions": "sessions",
}


def show_fits(name: str | None, config: LoadConfig, memory_bytes: int, output_format: str) -> None:
    """Print what runs in a limit; the exit code is 1 where nothing does.

    Args:
        name: As typed; None for all models of the catalog.
        config: What is wanted.
        memory_bytes: The limit.
        output_format: "human" or "json".
    """
    from qwen_edge.memory_fit import budget_of
    from qwen_edge.memory_plan import fit_memory

    found = fit_memory(name, config, memory_bytes)
    if output_format == "json":
        models = [{"name": each.title, "fit": fit_json(each.fit) if each.fit else None} for each in found]
        print_json({"memory_bytes": memory_bytes, "budget_bytes": budget_of(memory_bytes), "models": models})
    else:
        console_on(sys.stdout).print(fits_table(found))
        note(
            f"Counted: the whole process with its context full, in {format_bytes(budget_of(memory_bytes))}; a tenth of "
            f"{format_bytes(memory_bytes)} is left free."
        )
        if any(each.fit is not None and each.fit.is_from_disk for each in found):
            note(
                "From disk: the weights have no room, and every token reads so much of them: seconds a token."
            )
        if name is not None and (fit := found[0].fit) is not None:
            note(f"Load it with: {load_line(found[0].reference, fit)}")
    if not any(each.fit for each in found):
        raise click.exceptions.Exit(1)


def fits_table(found: Sequence[NamedFit]) -> Table:
    """Return one line for each model, dim where nothing of it fits."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("Name", overflow="fold")
    table.add_column("Fits as", no_wrap=True)
    for title in ("n_ctx", "up to", "Peak"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("Settings", overflow="fold")
    for each in found:
        fit = each.fit
        if fit is None:
            table.add_row(each.title, "no", "-", "-", "-", "", style="dim")
            continue
        table.add_row(
            each.title,
            fit.type_name or "-",
            f"{fit.config.n_ctx:,}",
            f"{fit.largest_n_ctx:,}",
            format_bytes(fit.need.held_bytes if fit.is_from_disk else fit.resident_bytes),
            describe_settings(fit),
            style="dim" if fit.is_from_disk else "",
        )
    return table


def describe_settings(fit: MemoryFit) -> str:
    """Return the settings that are not the default, in words."""
    words = []
    for name, value in fit.settings.items():
        if name == "n_ctx" or (name == "flash_attention" and "kv_type" in fit.settings):
            continue  # a column of its own; said by the KV cache that needs it
        known = "" if value in (True, "on") else str(value)
        words.append(f"{_SHORT_NAMES[name]} {known}".strip())
    if fit.is_from_disk:
        words.append(f"from disk: {format_bytes(fit.disk_bytes_per_token)} a token")
    return ", ".join(words)


def load_line(reference: str, fit: MemoryFit) -> str:
    """Return the Python call that loads a model so."""
    settings = "".join(f", {name}={value!r}" for name, value in fit.settings.items())
    return f"qwen_edge.load({reference!r}{settings})"


def fit_json(fit: MemoryFit) -> dict[str, Any]:
    """Return a fit as JSON types."""
    return {
        "type": fit.type_name,
        "file_bytes": fit.file_bytes,
        "settings": fit.settings,
        "largest_n_ctx": fit.largest_n_ctx,
        "memory": asdict(fit.need),
        "held_bytes": fit.need.held_bytes,
        "resident_bytes": fit.resident_bytes,
        "disk_bytes_per_token": fit.disk_bytes_per_token,
        "given_up": list(fit.given_up),
    }
