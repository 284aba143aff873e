"""How near decode comes to the memory's limit, for each type and shape.

python -m qwen_edge.bench.roofline [--model qwen3-0.6b]... [--types Q4_0,Q8_0|all] [--file FILE]... [--n-threads N]
    [--depth 0] [--turns 5] [--budget SECONDS] [--save FILE] [--format human|json]

Weights are random, of the true shape and type, in a temporary folder (TMPDIR), one file at a time. Each turn is a process
of its own that measures one file once; the files take turns, and the figures are medians. With --save each turn is kept:
the same command goes on where it was ended, until every file has its turns.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from qwen_edge import device
from qwen_edge.bench.roofline_record import RooflineRecord, RooflineRow, RooflineTurn, file_cost
from qwen_edge.bench.tables import count, megabytes, new_table
from qwen_edge.catalog import find_model
from qwen_edge.config import LoadConfig, Switch
from qwen_edge.device.bandwidth import measure_passes
from qwen_edge.errors import (
    ConfigError,
    InsufficientMemoryError,
    NoSpaceError,
    QwenEdgeError,
    UnsupportedError,
)
from qwen_edge.gguf_header import read_header
from qwen_edge.memory import COMMON_TYPES
from qwen_edge.memory_check import require_memory
from qwen_edge.memory_kernels import build_kernels
from qwen_edge.native import library
from qwen_edge.native.builds import chosen_build
from qwen_edge.native.speed_trial import Trial, run_turn
from qwen_edge.quant_types import FILE_TYPES, file_type, file_type_of_id
from qwen_edge.trial_model import write_trial_model

_TURN_S = 600.0
# Of what is free: the buffer of the bandwidth is held for a moment only, and freed before the model is loaded.
_BUFFER_SHARE = 0.5


def new_record(trial: Trial) -> RooflineRecord:
    """Return an empty record of the build that serves here."""
    build = chosen_build()
    return RooflineRecord(
        machine=device.describe_machine(),
        build={
            **library.build_facts(),
            "origin": build.origin if build else None,
            "fingerprint": library.library_fingerprint(),
            "kernels": sorted(build_kernels()),
        },
        settings=asdict(trial),
    )


def measure_rows(
    record: RooflineRecord,
    rows: Sequence[RooflineRow],
    *,
    turns: int,
    budget_s: float | None,
    say: Callable[[str], None],
    keep: Callable[[], None],
) -> int:
    """Measure rows in turns, the ones with the fewest first.

    Args:
        record: What they belong to.
        rows: Which of its rows.
        turns: That each should have.
        budget_s: No turn is begun that would end later, by what its last one took, or the longest of others; None for
            no limit.
        say: Told what is going on.
        keep: Called after each turn.

    Returns:
        Turns that are missing.
    """
    ends = time.monotonic() + (float("inf") if budget_s is None else budget_s)
    took_s: dict[int, float] = {}
    waiting = [row for row in rows if len(row.turns) < turns]
    while waiting:
        row = min(waiting, key=lambda row: len(row.turns))
        started = time.monotonic()
        if started + took_s.get(id(row), max(took_s.values(), default=0)) > ends:
            break
        say(f"{row.model} {row.type_name}, turn {len(row.turns) + 1} of {turns}")
        if reason := _measure(row, record, min(_TURN_S, ends - started)):
            say(f"  no figure: {reason}")
            waiting.remove(row)
            continue
        keep()
        took_s[id(row)] = time.monotonic() - started
        waiting = [row for row in waiting if len(row.turns) < turns]
    return sum(max(0, turns - len(row.turns)) for row in rows)


def _measure(row: RooflineRow, record: RooflineRecord, timeout_s: float) -> str:
    """Take a turn of a row; return why there is none, "" where there is."""
    trial = Trial(**record.settings)
    try:
        with _file_of(row) as path:
            n_ctx = trial.depth + max(trial.n_prompt, trial.n_decode)
            require_memory(
                path,
                LoadConfig(n_ctx=n_ctx, n_batch=trial.n_batch, flash_attention=trial.flash_attention),
            )
            row.cost = file_cost(read_header(path), build_kernels())
            free_bytes = device.available_memory_bytes().available_bytes
            n_bytes = min(round(row.bytes_per_token(record.settings)), int(free_bytes * _BUFFER_SHARE))
            bandwidth = measure_passes(n_bytes, trial.n_threads)
            turn, reason = run_turn(path, trial, timeout_s=timeout_s)
    except (InsufficientMemoryError, NoSpaceError, UnsupportedError) as error:
        return error.message
    if turn is None:
        return reason
    record.system_info = turn.system_info
    row.turns.append(
        RooflineTurn(
            prefill_tokens_per_s=turn.prefill_tokens_per_s,
            decode_tokens_per_s=turn.decode_tokens_per_s,
            bandwidth_bytes_per_s=bandwidth,
        )
    )
    return ""


@contextlib.contextmanager
def _file_of(row: RooflineRow) -> Iterator[Path]:
    """Give the file of a row; where a model is named it is written, and removed afterwards."""
    if Path(row.model).is_file():
        yield Path(row.model)
        return
    model = find_model(row.model)
    assert model.shape is not None, f"Bug: {row.model} was taken without a shape"
    with tempfile.TemporaryDirectory(prefix="qwen-edge-roofline-") as folder:
        path = Path(folder) / "trial.gguf"
        architecture: Any = "qwen3" if model.shape.has_qk_norm else "qwen2"
        write_trial_model(path, model.shape, row.type_name, architecture=architecture)
        yield path


def _chosen_rows(
    record: RooflineRecord, models: Sequence[str], types: str, files: Sequence[Path]
) -> list[RooflineRow]:
    """Return the rows that were asked for.

    Raises:
        ConfigError: A type that is not known, or a model whose shape is not.
    """
    names = list(FILE_TYPES) if types == "all" else [file_type(name).name for name in types.split(",")]
    rows = []
    for file in files:
        kind = file_type_of_id(read_header(file).metadata.get("general.file_type"))
        rows.append(record.row(str(file), kind.name if kind else "?"))
    for name in models:
        model = find_model(name)
        if model.shape is None:
            raise ConfigError(
                f"the shape of {model.name} is not known", hint="Fetch it, and name the file with --file."
            )
        rows += [record.row(model.name, type_name) for type_name in names]
    return rows


def print_table(record: RooflineRecord, rows: Sequence[RooflineRow]) -> None:
    """Print one line for each row that was measured, and what the figures were taken with."""
    from rich.console import Console

    measured = [row for row in rows if row.turns]
    if not measured:
        return
    table = new_table(
        "Model", "Type", "Bits a\nweight", "File\nMB", "MB a\ntoken", "Prefill\ntok/s", "Decode\ntok/s",
        "Of the\nlimit", "Re-\npacked",
    )  # fmt: skip
    for row in measured:
        assert row.cost is not None, "Bug: turns of a file that was not looked at"
        table.add_row(
            Path(row.model).name,
            row.type_name,
            f"{row.cost.bits_per_weight:.2f}",
            megabytes(row.cost.file_bytes),
            megabytes(round(row.bytes_per_token(record.settings))),
            *(f"{row.median(name):.1f}" for name in ("prefill_tokens_per_s", "decode_tokens_per_s")),
            f"{row.decode_share(record.settings):.0%}",
            f"{row.cost.repacked_share:.0%}",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(_caption(record, measured), soft_wrap=True)


def _caption(record: RooflineRecord, rows: Sequence[RooflineRow]) -> str:
    settings, kernels = record.settings, record.build["kernels"]
    turns = _span([len(row.turns) for row in rows], 0)
    limit = _span([row.median("bandwidth_bytes_per_s") / 1e9 for row in rows], 1)
    return (
        f"prefill of {settings['n_prompt']} and decode of {settings['n_decode']} tokens behind {settings['depth']}, "
        f"flash attention {settings['flash_attention']}, medians of {turns}\n"
        f"the limit: {count(settings['n_threads'], 'thread')} read {limit} GB/s\n"
        f"{record.machine['cpu']}, kernels for {', '.join(kernels) or 'any CPU'}"
    )


def _span(values: Sequence[float], digits: int) -> str:
    """Return "2", or "2 to 5"."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


@click.command()
@click.option("--model", "models", multiple=True, help="A name of the catalog; may be repeated.")
@click.option("--types", default=",".join(COMMON_TYPES), show_default=True, help="With commas, or: all.")
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A GGUF file instead of a shape; may be repeated.",
)
@click.option("--n-threads", type=click.IntRange(min=1), help="Default: the physical cores.")
@click.option("--depth", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--n-prompt", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--n-decode", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--flash-attention", type=click.Choice(["off", "on"]), default="off", show_default=True)
@click.option("--turns", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--budget", "budget_s", type=click.FloatRange(min=0), help="Seconds for this run.")
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Record to begin or go on with."
)
@click.option(
    "--format", "output_format", type=click.Choice(["human", "json"]), default="human", show_default=True
)
def main(
    models: tuple[str, ...],
    types: str,
    files: tuple[Path, ...],
    n_threads: int | None,
    depth: int,
    n_prompt: int,
    n_decode: int,
    flash_attention: Switch,
    turns: int,
    budget_s: float | None,
    save: Path | None,
    output_format: str,
) -> None:
    """Measure decode against the memory's limit, for types and shapes."""
    trial = Trial(
        n_threads=n_threads or device.usable_cores(),
        n_prompt=n_prompt,
        n_decode=n_decode,
        depth=depth,
        n_batch=min(n_prompt, 512),
        flash_attention=flash_attention,
    )
    record = new_record(trial)
    try:
        if save is not None and save.exists():
            record.take_up(save)
        rows = _chosen_rows(record, models or (() if files else ("qwen3-0.6b",)), types, files)
    except QwenEdgeError as error:
        raise click.ClickException(str(error)) from error

    def keep() -> None:
        if save is not None:
            record.save(save)

    missing = measure_rows(
        record, rows, turns=turns, budget_s=budget_s, say=lambda text: click.echo(text, err=True), keep=keep
    )
    if output_format == "json":
        import json

        click.echo(json.dumps(record.to_dict(), indent=1))
    else:
        print_table(record, rows)
    if missing:
        click.echo(f"{missing} turns are missing: the same command goes on, with --save", err=True)


if __name__ == "__main__":
    main()
