"""`qwen-edge recommend`: which quantization of a model suits this machine, before it is fetched."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from qwen_edge.cli.completing import complete_model
from qwen_edge.cli.options import parse_size
from qwen_edge.cli.output import console_on, format_bytes, format_option, note, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from qwen_edge.tune.recommending import Candidate


@click.command("recommend")
@click.argument("name", shell_complete=complete_model)
@click.option(
    "--min-decode",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="TOKENS/S",
    help="Answers at least so fast.",
)
@click.option(
    "--min-prefill",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="TOKENS/S",
    help="Prompts read at least so fast.",
)
@click.option(
    "--max-memory",
    "max_memory_bytes",
    type=parse_size,
    metavar="SIZE",
    help="Peak of memory, as in 1GB. Default: what is free.",
)
@click.option("--max-file", "max_file_bytes", type=parse_size, metavar="SIZE", help="Length of the file.")
@click.option(
    "--n-ctx", type=click.IntRange(min=16), default=4096, show_default=True, help="Context, in tokens."
)
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    help="Tokens in the context when speed is measured. Default: 512, or what fits.",
)
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    help="Types to choose from; may be given again. Default: those that qwen-edge list shows.",
)
@click.option("--again", is_flag=True, help="Measure anew what was measured before.")
@format_option
def command(
    name: str,
    min_decode: float,
    min_prefill: float,
    max_memory_bytes: int | None,
    max_file_bytes: int | None,
    n_ctx: int,
    depth: int | None,
    types: tuple[str, ...],
    again: bool,
    output_format: str,
) -> None:
    """Tell which quantization of the model NAME suits this machine, and with which settings, before it is fetched.

    Of the types that meet what is asked, the one with the most bits is recommended. Memory is planned; speed is measured
    on random weights of the model's shape, 20 seconds and more a type, and remembered. The exit code is 1 where none suits.
    """
    from qwen_edge.catalog import find_model
    from qwen_edge.memory import COMMON_TYPES
    from qwen_edge.tune.recommending import Limits, recommend
    from qwen_edge.tuned import Workload

    model = find_model(name)
    limits = Limits(
        n_ctx=n_ctx,
        min_decode=min_decode,
        min_prefill=min_prefill,
        max_memory_bytes=max_memory_bytes,
        max_file_bytes=max_file_bytes,
    )
    candidates = recommend(
        model,
        limits,
        workload=None if depth is None else Workload(depth=depth),
        types=types or COMMON_TYPES,
        again=again,
        say=note,
    )
    suits = bool(candidates) and not candidates[0].misses
    if output_format == "json":
        print_json(
            {"name": model.name, "n_ctx": n_ctx, "candidates": [_as_json(each) for each in candidates]}
        )
    else:
        _show(model.name, candidates, suits=suits)
    if not suits:
        raise click.exceptions.Exit(1)


def _show(name: str, candidates: Sequence[Candidate], *, suits: bool) -> None:
    from qwen_edge.tune.recommending import fastest
    from qwen_edge.tune.words import describe_settings, describe_workload

    console_on(sys.stdout).print(candidates_table(name, candidates))
    measured = next((each.record for each in candidates if each.record is not None), None)
    if measured is not None:
        note(f"Speeds: {describe_workload(measured.workload)}; random weights of this shape.")
    quickest = fastest(candidates)
    if not suits:
        click.echo(f"None suits. {_nearest(candidates)}")
        note("A smaller model may: qwen-edge list")
        return
    best = candidates[0]
    click.echo(f"Take {name}@{best.type_name}: of what suits, the closest to the original.")
    if best.record is not None:
        click.echo(f"Fastest with: {describe_settings(best.record.settings)}.")
    if quickest is not None and quickest is not best:
        click.echo(f"Fastest of all: {name}@{quickest.type_name}.")
    note(f"qwen-edge pull {name}@{best.type_name}, then qwen-edge tune {name}@{best.type_name}")


def _nearest(candidates: Sequence[Candidate]) -> str:
    """Return what comes closest where nothing suits: the fastest that was measured, else the smallest."""
    from qwen_edge.tune.recommending import fastest

    best = fastest(candidates)
    if best is not None:
        return f"The fastest is {best.type_name}, with {best.decode_tokens_per_s:.1f} tokens/s of decode."
    least = min(candidates, key=lambda each: each.memory.total_bytes)
    return f"{least.type_name} needs least, {format_bytes(least.memory.total_bytes)}; a shorter --n-ctx needs less."


def candidates_table(name: str, candidates: Sequence[Candidate]) -> Table:
    """Return one line for each type."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column(name, no_wrap=True)
    for title in ("bits", "file", "memory", "prefill", "decode"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for each in candidates:
        table.add_row(
            each.type_name,
            f"{each.bits_per_weight:.1f}",
            format_bytes(each.file_bytes),
            format_bytes(each.memory.total_bytes),
            _speed(each.prefill_tokens_per_s, 0),
            _speed(each.decode_tokens_per_s, 1),
            "; ".join(each.misses) if each.misses else "suits",
        )
    return table


def _speed(tokens_per_s: float | None, places: int) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:.{places}f}"


def _as_json(each: Candidate) -> dict[str, Any]:
    record = each.record
    return {
        "type": each.type_name,
        "file_bytes": each.file_bytes,
        "bits_per_weight": each.bits_per_weight,
        "peak_bytes": each.memory.total_bytes,
        "prefill_tokens_per_s": each.prefill_tokens_per_s,
        "decode_tokens_per_s": each.decode_tokens_per_s,
        "settings": asdict(record.settings) if record else None,
        "suits": not each.misses,
        "misses": list(each.misses),
    }
