"""`qwen-edge plan`: the memory that a model will need, before it is fetched."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from qwen_edge.cli.completing import complete_model
from qwen_edge.cli.fitting import show_fits
from qwen_edge.cli.options import (
    flash_attention_for,
    flash_attention_option,
    kv_type_option,
    load_mode_option,
    n_ctx_option,
    parse_size,
)
from qwen_edge.cli.output import console_on, format_bytes, format_option, note, print_json
from qwen_edge.config import MAX_SESSIONS, KVType, LoadConfig, LoadMode, Switch

if TYPE_CHECKING:
    from rich.table import Table

    from qwen_edge.memory_plan import MemoryPlan


@click.command("plan")
@click.argument("name", required=False, shell_complete=complete_model)
@n_ctx_option
@click.option(
    "--sessions",
    type=click.IntRange(1, MAX_SESSIONS),
    default=1,
    show_default=True,
    help="Conversations at a time, each with a context of its own.",
)
@kv_type_option
@flash_attention_option
@load_mode_option
@click.option(
    "--memory",
    "memory_bytes",
    type=parse_size,
    metavar="SIZE",
    help="Tell what runs in so much, as in 512MB or 1GB, and with which settings; without NAME of every model.",
)
@format_option
def command(
    name: str | None,
    n_ctx: int,
    sessions: int,
    kv_type: KVType,
    flash_attention: Switch | None,
    load_mode: LoadMode,
    memory_bytes: int | None,
    output_format: str,
) -> None:
    """Tell the memory that a model will need, by part, and whether it is free.

    NAME is a model of the catalog, which need not be here, with or without its type (qwen3-4b@q4_0); a GGUF file; or a
    folder exported to ONNX. What is told is the peak: loaded, its contexts full. The exit code is 1 where it does not fit.

    With --memory it finds what fits in that, a tenth of it left free: of each model the type of most bits. Given up for that
    are, in this order: large batches, the F16 KV cache, a context beyond 2,048 tokens, bits, a context beyond 512 tokens,
    weights that are read and not mapped, fast kernels; at last weights come from the disk for every token.
    """
    from qwen_edge.memory_plan import plan_memory

    if name is None and memory_bytes is None:
        raise click.UsageError("Name a model, or tell with --memory SIZE what all of them are to run in.")

    config = LoadConfig(
        n_ctx=n_ctx,
        n_sessions=sessions,
        kv_type=kv_type,
        flash_attention=flash_attention_for(kv_type, flash_attention),
        load_mode=load_mode,
    )
    if memory_bytes is not None:
        show_fits(name, config, memory_bytes, output_format)
        return
    assert name is not None, "Bug: that is wrong usage"
    plan = plan_memory(name, config)
    if output_format == "json":
        print_json(as_json(plan))
    else:
        console_on(sys.stdout).print(plan_table(plan))
        note(
            f"Free: {format_bytes(plan.free.available_bytes)}. {plan.free.reason[:1].upper()}{plan.free.reason[1:]}."
        )
        if plan.largest_n_ctx:
            note(f"The largest context that fits: {plan.largest_n_ctx:,} tokens{_each(plan)}.")
        note("It fits." if plan.fits else f"It does not fit. {plan.advice}")
    if not plan.fits:
        raise click.exceptions.Exit(1)


def plan_table(plan: MemoryPlan) -> Table:
    """Return one line for each part of a need, and their sum."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    kind = f" as {plan.type_name}" if plan.type_name else ""
    table.add_column(f"{plan.title}{kind}", overflow="fold")
    table.add_column("Memory", justify="right", no_wrap=True)
    need, config = plan.need, plan.config
    rows = [
        ("Weights", need.weights_bytes),
        ("Second copy of the head", need.head_copy_bytes),
        (f"KV cache, {config.n_ctx:,} tokens{_each(plan)}", need.kv_bytes),
        (f"Activations, batches of {min(config.n_batch, config.n_ctx)}", need.compute_bytes),
        ("Python, libraries, vocabulary", need.runtime_bytes),
        ("Pages of the mapped file, which the system may drop", need.mapped_bytes),
    ]
    for title, n_bytes in rows:
        if n_bytes:
            table.add_row(title, format_bytes(n_bytes))
    if (moment := need.total_bytes - need.held_bytes - need.mapped_bytes) > 0:
        table.add_row("For a moment while loading, beyond that", format_bytes(moment))
    table.add_section()
    table.add_row("Peak", format_bytes(need.total_bytes), style="bold")
    return table


def as_json(plan: MemoryPlan) -> dict[str, Any]:
    """Return a plan as JSON types."""
    config = plan.config
    return {
        "name": plan.title,
        "type": plan.type_name,
        "n_ctx": config.n_ctx,
        "n_sessions": config.n_sessions,
        "kv_type": config.kv_type,
        "flash_attention": config.flash_attention,
        "load_mode": config.load_mode,
        "memory": asdict(plan.need),
        "peak_bytes": plan.need.total_bytes,
        "wanted_bytes": plan.need.wanted_bytes,
        "free": asdict(plan.free),
        "fits": plan.fits,
        "largest_n_ctx": plan.largest_n_ctx,
        "advice": plan.advice,
    }


def _each(plan: MemoryPlan) -> str:
    return f" in each of {plan.config.n_sessions} sessions" if plan.config.n_sessions > 1 else ""
