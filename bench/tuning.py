"""What tuning finds against all there is: llama-bench over every combination of the same settings.

python -m qwen_edge.bench.tuning --llama-bench PROGRAM --file FILE [--depth 512] [--budget 60] [--passes 2] [--rounds 5]
    [--no-sweep] [--format human|json]

First the file is tuned, for a chat at that depth. Then llama-bench measures each combination of threads, flash attention,
micro-batch, load mode and repacking, all of them once before any a second time; the share is the best turn of the sweep
over the turn with the settings that tuning found, both in llama-bench's own figures. Last, llama.cpp's default settings and
the found ones in turns, in llama-bench too: only the settings differ. Set LLAMA_CPP_LIB_PATH to the folder of llama-bench's
libraries, so that both run the same build.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from qwen_edge import device, hub
from qwen_edge.bench.peers import output_of
from qwen_edge.bench.tables import new_table
from qwen_edge.native import library
from qwen_edge.tune.arms import turn_s
from qwen_edge.tune.finding import tune_file
from qwen_edge.tune.words import describe_settings
from qwen_edge.tuned import Settings, TuneRecord, Workload

_BATCHES = (128, 256, 512)
_DECODE_TOKENS = 32
# Source: llama-bench --help; "auto" is what it does when told nothing, flash attention on and the file mapped.
_DEFAULTS = ("-fa", "auto", "-lm", "auto", "-ub", "512", "--repack", "1")


@dataclass(frozen=True, slots=True)
class Point:
    """One combination, as llama-bench is told it."""

    n_threads: int
    flash_attention: str
    n_ubatch: int
    load_mode: str
    repack: int

    @property
    def decode(self) -> Point:
        """The same with the micro-batch that decoding does not depend on."""
        return Point(self.n_threads, self.flash_attention, max(_BATCHES), self.load_mode, self.repack)


Speeds = dict[tuple[str, Point], list[float]]
"""Seconds a token by phase and combination."""


def grid(threads: Iterable[int]) -> tuple[Point, ...]:
    """Return every combination."""
    choices = (threads, ("off", "on"), _BATCHES, ("none", "mmap"), (1, 0))
    return tuple(Point(*values) for values in itertools.product(*choices))


def nearest_points(settings: Settings) -> tuple[Point, Point]:
    """Return the combinations in which llama-bench reads prompts and writes answers as these settings do."""
    decode = Point(
        settings.n_threads,
        settings.flash_attention,
        min(settings.n_batch, max(_BATCHES)),
        "mmap" if settings.load_mode == "mmap" else "none",
        0 if settings.safe_kernels else 1,
    )
    prefill = Point(settings.n_prefill_threads or settings.n_threads, *_values(decode)[1:])
    return prefill, decode.decode


def _values(point: Point) -> tuple[Any, ...]:
    return (point.n_threads, point.flash_attention, point.n_ubatch, point.load_mode, point.repack)


def sweep(program: Path, file: Path, points: Sequence[Point], workload: Workload, passes: int) -> Speeds:
    """Measure all combinations, `passes` times over.

    Raises:
        ConfigError: There is no such program.
        NativeError: It fails.
    """
    found: Speeds = defaultdict(list)
    lists = [",".join(map(str, dict.fromkeys(column))) for column in zip(*map(_values, points), strict=True)]
    for _ in range(passes):
        for phase, batches in (("prefill", lists[2]), ("decode", str(max(_BATCHES)))):
            flags = ["-t", lists[0], "-fa", lists[1], "-ub", batches, "-lm", lists[3], "--repack", lists[4]]
            for row in _run(program, file, phase, workload, flags):
                found[phase, _point_of(row)].append(1 / row["avg_ts"])
    return found


def _point_of(row: dict[str, Any]) -> Point:
    """Return the combination of a row of llama-bench's."""
    return Point(
        row["n_threads"],
        "on" if row["flash_attn"] else "off",
        row["n_ubatch"],
        row["load_mode"],
        int(row["repack"]),
    )


def _run(
    program: Path, file: Path, phase: str, workload: Workload, flags: Sequence[str]
) -> list[dict[str, Any]]:
    sizes = (workload.prompt_tokens, 0) if phase == "prefill" else (0, _DECODE_TOKENS)
    command = [
        str(program), "-m", str(file), "-p", str(sizes[0]), "-n", str(sizes[1]), "-d", str(workload.depth),
        "-r", "1", "-o", "json", *flags,
    ]  # fmt: skip
    rows: list[dict[str, Any]] = json.loads(output_of(command))
    return rows


def best_turn(found: Speeds, points: Sequence[Point], threads: Sequence[int], workload: Workload) -> float:
    """Return the seconds of the fastest turn: threads may differ between prompts and answers, all else may not."""
    return min(
        _turn(found, Point(n_prefill, *_values(point)[1:]), point.decode, workload)
        for point in points
        for n_prefill in threads
    )


def _turn(found: Speeds, prefill: Point, decode: Point, workload: Workload) -> float:
    return turn_s(
        workload, statistics.median(found["prefill", prefill]), statistics.median(found["decode", decode])
    )


def against_defaults(
    program: Path, file: Path, settings: Settings, workload: Workload, rounds: int
) -> dict[str, dict[str, float]]:
    """Measure llama.cpp's defaults and found settings in turns, both with llama-bench; return medians of each.

    Raises:
        ConfigError, NativeError: As sweep().
    """
    prefill, decode = nearest_points(settings)
    sides = {
        "llama.cpp's defaults": {phase: [*_DEFAULTS] for phase in ("prefill", "decode")},
        "tuned": {"prefill": _flags(prefill), "decode": _flags(decode)},
    }
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for phase in ("prefill", "decode"):
            for name, flags in sides.items():
                [row] = _run(program, file, phase, workload, flags[phase])
                samples[name, phase].append(1 / row["avg_ts"])
    result = {}
    for name in sides:
        token_s = {phase: statistics.median(samples[name, phase]) for phase in ("prefill", "decode")}
        result[name] = {
            **{phase: 1 / seconds for phase, seconds in token_s.items()},
            "turn_s": turn_s(workload, token_s["prefill"], token_s["decode"]),
        }
    return result


def _flags(point: Point) -> list[str]:
    threads, flash, batch, mode, repack = map(str, _values(point))
    return ["-t", threads, "-fa", flash, "-ub", batch, "-lm", mode, "--repack", repack]


def _show(record: TuneRecord, document: dict[str, Any]) -> None:
    from rich.console import Console

    click.echo(f"tuned in {record.seconds:.0f} s: {describe_settings(record.settings)}")
    if "share_of_best" in document:
        click.echo(
            f"sweep of {document['n_combinations']} combinations in {document['sweep_s']:.0f} s: the found settings reach "
            f"{document['share_of_best']:.3f} of the best"
        )
    table = new_table("Settings", "Prefill", "Decode", "A turn, s")
    for name, speeds in document["against_defaults"].items():
        table.add_row(name, f"{speeds['prefill']:.1f}", f"{speeds['decode']:.1f}", f"{speeds['turn_s']:.2f}")
    Console(highlight=False).print(table)


@click.command()
@click.option(
    "--llama-bench",
    "program",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    required=True,
)
@click.option("--file", required=True, help="A GGUF file, or a model's name.")
@click.option("--depth", type=click.IntRange(min=0), default=512, show_default=True)
@click.option("--budget", "budget_s", type=click.FloatRange(min=5), default=60.0, show_default=True)
@click.option("--passes", type=click.IntRange(min=1), default=2, show_default=True, help="Of the sweep.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Against the defaults."
)
@click.option("--no-sweep", is_flag=True, help="Only against the defaults.")
@click.option(
    "--format", "output_format", type=click.Choice(["human", "json"]), default="human", show_default=True
)
def main(
    program: Path,
    file: str,
    depth: int,
    budget_s: float,
    passes: int,
    rounds: int,
    no_sweep: bool,
    output_format: str,
) -> None:
    """Compare what tuning finds with an exhaustive sweep, and with llama.cpp's defaults."""
    path = hub.locate(file)
    workload = Workload(depth=depth)
    record = tune_file(path, workload, budget_s=budget_s, say=lambda line: click.echo(line, err=True))
    document: dict[str, Any] = {
        "schema": "qwen-edge/tuning/1",
        "machine": {**device.describe_machine(), "native": library.build_facts()},
        "file": str(path),
        "record": asdict(record),
    }
    if not no_sweep:
        n_cores = device.usable_cores()
        threads = sorted({1, n_cores // 2 or 1, n_cores}, reverse=True)
        points = grid(threads)
        started = time.monotonic()
        found = sweep(program, path, points, workload, passes)
        document["sweep_s"] = time.monotonic() - started
        document["n_combinations"] = len(points)
        best = best_turn(found, points, threads, workload)
        document["share_of_best"] = best / _turn(found, *nearest_points(record.settings), workload)
    document["against_defaults"] = against_defaults(program, path, record.settings, workload, rounds)
    if output_format == "json":
        click.echo(json.dumps(document, indent=2))
    else:
        _show(record, document)


if __name__ == "__main__":
    main()
