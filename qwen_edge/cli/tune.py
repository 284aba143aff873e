"""`qwen-edge tune`: the fastest settings for a model on this machine, measured and remembered."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_edge.cli.completing import complete_model
from qwen_edge.cli.output import console_on, format_option, note, print_json
from qwen_edge.config import KV_TYPES, KVType

if TYPE_CHECKING:
    from rich.table import Table

    from qwen_edge.tuned import TuneRecord


@click.command("tune")
@click.argument("file", shell_complete=complete_model)
@click.option(
    "--prompt-tokens", type=click.IntRange(min=2), default=256, show_default=True, help="Read in a turn."
)
@click.option(
    "--answer-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Written in a turn."
)
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    default=512,
    show_default=True,
    help="Tokens that the conversation has before it.",
)
@click.option(
    "--sessions",
    type=click.IntRange(min=1, max=64),
    default=1,
    show_default=True,
    help="Conversations that go on at once; used by load() for the same number.",
)
@click.option(
    "--kv-type",
    "kv_types",
    type=click.Choice(KV_TYPES),
    multiple=True,
    default=["f16"],
    show_default=True,
    help="Type of the KV cache that is allowed; may be given again. Others than f16 change answers.",
)
@click.option(
    "--budget",
    "budget_s",
    type=click.FloatRange(min=5),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Time to take.",
)
@click.option(
    "--prompts",
    "prompts_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Prompts of your application, one a line: whether prompt lookup pays on them is tried too.",
)
@click.option(
    "--explain",
    "is_explained",
    is_flag=True,
    help="Show why the settings in use were chosen; measure nothing.",
)
@click.option("--forget", "is_forgotten", is_flag=True, help="Go back to the defaults for this file.")
@format_option
def command(
    file: str,
    prompt_tokens: int,
    answer_tokens: int,
    depth: int,
    sessions: int,
    kv_types: tuple[KVType, ...],
    budget_s: float,
    prompts_path: Path | None,
    is_explained: bool,
    is_forgotten: bool,
    output_format: str,
) -> None:
    """Find the fastest settings for FILE (a GGUF file, an ONNX folder, or a model's name) on this machine.

    Threads, kernels, flash attention, batches, mapping and affinity are tried in turns, on the model itself. What is found
    is remembered for this file, machine and build, and used whenever the file is loaded. Answers stay the same.
    """
    from qwen_edge import hub, tuned
    from qwen_edge.tune.finding import tune_file
    from qwen_edge.tune.speculating import read_prompts, with_speculation

    path = hub.locate(file)
    if is_forgotten:
        note("Forgotten." if tuned.forget(path) else f"{path} was not tuned here.")
        return
    if is_explained:
        record = tuned.find_record(path)
        if record is None:
            raise _not_tuned(str(path))
    else:
        workload = tuned.Workload(
            prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, depth=depth, n_sessions=sessions
        )
        prompts = read_prompts(prompts_path) if prompts_path is not None else []
        record = tune_file(path, workload, kv_types=kv_types, budget_s=budget_s, say=note)
        if prompts:
            note(f"answering the prompts ({len(prompts)}) with and without prompt lookup, in turns")
            record = with_speculation(path, record, prompts)
        tuned.remember(path, record)
    if output_format == "json":
        print_json({**asdict(record), "gain": record.gain})
        return
    _show(record, file, is_explained=is_explained)


def _show(record: TuneRecord, file: str, *, is_explained: bool) -> None:
    from qwen_edge.tune.words import describe_workload, explain, verdict

    click.echo(f"For {describe_workload(record.workload)}:")
    console_on(sys.stdout).print(speeds_table(record))
    click.echo(verdict(record))
    if record.speculation_gain is not None:
        verb = "is used" if record.speculation == "prompt_lookup" else "is left off"
        click.echo(f"Prompt lookup {verb}: {record.speculation_gain:.2f} times as fast on your prompts.")
    if is_explained:
        for line in explain(record):
            click.echo(line)
        return
    note(f"{record.seconds:.0f} s. Used from now on when {file} is loaded; --no-tuned leaves it out.")
    note(f"Why: qwen-edge tune --explain {file}")


def speeds_table(record: TuneRecord) -> Table:
    """Return speeds with the default settings beside those that were found."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("")
    for title in ("default", "tuned"):
        table.add_column(title, justify="right")
    for key, title, places in _ROWS:
        table.add_row(title, *(f"{record.speeds[name][key]:,.{places}f}" for name in ("default", "tuned")))
    return table


_ROWS: tuple[tuple[str, str, int], ...] = (
    ("prefill", "prefill, tokens/s", 0),
    ("decode", "decode, tokens/s", 1),
    ("turn_s", "a turn, seconds", 2),
)


def _not_tuned(path: str) -> Any:
    from qwen_edge.errors import ModelNotFoundError

    return ModelNotFoundError(
        f"{path} was not tuned on this machine with this build", hint=f"Measure it: qwen-edge tune {path}"
    )
