"""Whether another CPU computes the same: logits and greedy tokens of fixed prompts, recorded on each and compared.

python -m qwen_edge.bench.across_cpus record FILE... -o RECORD [--label NAME] [--kernels fast|plain]
python -m qwen_edge.bench.across_cpus compare REFERENCE RECORD... [--exact RECORD] [--format json]

FILE is a GGUF file or a folder exported to ONNX. On each CPU it is evaluated with fast and with plain kernels, as one batch
(products of matrices) and token by token (of a matrix and a vector), and continued greedily. What two CPUs may be apart is
derived from what ways on one CPU are: see bench/cpu_comparison.py. The oracle of each type is the same file dequantized
(`qwen-edge quantize FILE -t F32 --allow-requantize -o OTHER_FOLDER/FILE`), recorded with `--kv-type f32`.

compare ends with exit code 1 where rounding does not explain a difference, or a run died.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import click
from rich.table import Table

from qwen_edge import hub
from qwen_edge.bench.cpu_comparison import FileComparison, OtherToken, compare_records, noise_bounds
from qwen_edge.bench.cpu_record import CpuRecord
from qwen_edge.bench.cpu_recording import N_STEPS, PROMPTS, record
from qwen_edge.bench.tables import new_table
from qwen_edge.config import KV_TYPES
from qwen_edge.errors import QwenEdgeError

_SCHEMA = "qwen-edge/across-cpus-comparison/1"
_VERDICTS = ("equal", "within", "beyond")


@click.group()
def main() -> None:
    """Record what this CPU computes, and compare records."""


@main.command("record")
@click.argument("files", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The record to write.")
@click.option("--label", help="What the CPU is called. [default: its name]")
@click.option("--kernels", type=click.Choice(["all", "fast", "plain"]), default="all", show_default=True)
@click.option("--prompt", "prompts", multiple=True, help="Instead of the fixed ones; may be given again.")
@click.option("--steps", type=click.IntRange(1, 128), default=N_STEPS, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Default: the physical cores.")
@click.option("--kv-type", type=click.Choice(KV_TYPES), default="f16", show_default=True)
@click.option("--flash-attention", type=click.Choice(["on", "off"]), default="off", show_default=True)
def record_command(
    files: tuple[str, ...],
    output: Path,
    label: str | None,
    kernels: str,
    prompts: tuple[str, ...],
    steps: int,
    threads: int | None,
    kv_type: str,
    flash_attention: str,
) -> None:
    """Evaluate FILES and write what came out."""
    made = record(
        [hub.locate(file) for file in files],
        label,
        prompts=prompts or PROMPTS,
        n_steps=steps,
        kinds=("fast", "plain") if kernels == "all" else (kernels,),
        settings={"n_threads": threads, "kv_type": kv_type, "flash_attention": flash_attention},
    )
    made.save(output)
    for failure in made.failures:
        click.echo(failure, err=True)
    click.echo(f"{output}: {made.label}, {len(made.runs)} runs")
    sys.exit(1 if made.failures else 0)


@main.command("compare")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--exact", type=click.Path(path_type=Path), help="Record of the same weights in F32.")
@click.option(
    "--format", "output_format", type=click.Choice(["human", "json"]), default="human", show_default=True
)
def compare_command(
    reference: Path, records: tuple[Path, ...], exact: Path | None, output_format: str
) -> None:
    """Compare RECORDS with REFERENCE, whose own noise decides what is allowed."""
    try:
        expected = CpuRecord.load(reference)
        ideal = CpuRecord.load(exact) if exact else None
        others = [CpuRecord.load(path) for path in records]
    except QwenEdgeError as error:
        raise click.ClickException(error.message) from error
    comparisons = [each for other in others for each in compare_records(expected, other, ideal)]
    failures = [f"{made.label}: {failure}" for made in (expected, *others) for failure in made.failures]
    if output_format == "json":
        document = {
            "schema": _SCHEMA,
            "machines": {made.label: made.machine for made in (expected, *others)},
            "comparisons": [each.to_dict() for each in comparisons],
            "failures": failures,
        }
        click.echo(json.dumps(document, indent=2))
    else:
        _print_comparisons(expected, ideal, comparisons, failures)
    sys.exit(1 if failures or any(each.is_finding for each in comparisons) else 0)


def _print_comparisons(
    expected: CpuRecord, ideal: CpuRecord | None, comparisons: list[FileComparison], failures: Iterable[str]
) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for cpu in dict.fromkeys(each.cpu for each in comparisons):
        console.print(f"{cpu}, compared with {expected.label}", markup=False)
        console.print(_table([each for each in comparisons if each.cpu == cpu]))
    console.print(
        "RMS and largest difference of logits, and the distance of each CPU from exact arithmetic, in percent of the "
        "spread. Allowed, by how inputs are rounded:"
    )
    for rounding, bound in sorted(noise_bounds(expected, ideal).items()):
        console.print(f"  {rounding}: RMS {bound.rms:.3%}, largest {bound.largest:.1%}", markup=False)
    for each in comparisons:
        for token in each.other_tokens:
            console.print(_sentence(each, token), markup=False)
    for failure in failures:
        console.print(failure, markup=False)


def _table(comparisons: list[FileComparison]) -> Table:
    has_exact = any(way.exact_rms for each in comparisons for way in each.ways)
    table = new_table(
        "File",
        "RMS\nprefill",
        "RMS\ndecode",
        "Largest",
        "KLD\nmnat",
        "Same\ntop",
        "Other\ntoken",
        *(["Exact\nhere", "Exact\nthere"] if has_exact else []),
        "Verdict",
    )
    for each in comparisons:
        table.add_row(*_cells(each, has_exact))
    return table


def _cells(each: FileComparison, has_exact: bool) -> list[str]:
    """Return a row of the table: where there is one figure for both ways, the larger one."""
    distances = [way.distance for way in each.ways]
    exact = [way.exact_rms for way in each.ways if way.exact_rms]
    first = min((token.step for token in each.other_tokens), default=None)
    return [
        each.file.removesuffix(".gguf") + (", plain" if each.kernels == "plain" else ""),
        *(f"{apart.rms * 100:.2f}" for apart in distances),
        f"{max(apart.largest for apart in distances) * 100:.1f}",
        f"{max(apart.mean_kld for apart in distances) * 1e3:.2f}",
        f"{min(apart.same_top_share for apart in distances):.0%}",
        "-" if first is None else str(first),
        *(_exact_cells(exact) if has_exact else []),
        "FINDING" if each.is_finding else max((way.verdict for way in each.ways), key=_VERDICTS.index),
    ]


def _exact_cells(exact: list[tuple[float, float]]) -> list[str]:
    """Return the distances of reference and other from exact arithmetic, of both ways the larger one."""
    return [f"{max(pair) * 100:.2f}" for pair in zip(*exact, strict=True)] if exact else ["-", "-"]


def _sentence(each: FileComparison, token: OtherToken) -> str:
    kind = "a near tie" if token.is_near_tie else "no near tie: a finding"
    return (
        f"{each.file}, {each.cpu}, {each.kernels} kernels: prompt {token.prompt}, step {token.step}: token "
        f"{token.tokens[1]} for {token.tokens[0]}, which is {token.margin:.3f} above it: {kind}"
    )


if __name__ == "__main__":
    main()
