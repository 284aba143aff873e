"""Results as tables for the terminal; readable at 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from qwen_edge.bench.advice import Candidate
from qwen_edge.bench.record import BenchRecord, Samples


def new_table(*columns: str) -> Table:
    """Return an empty table: the first column is a file name that may wrap, the others are figures.

    Args:
        columns: Headings; a line break in one keeps its column narrow.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column(columns[0], overflow="fold", ratio=1, vertical="bottom")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    return table


def megabytes(size_bytes: int | None) -> str:
    """Return a size in decimal megabytes without the unit, "-" when it is not known."""
    return "-" if size_bytes is None else f"{size_bytes / 1e6:,.1f}"


def speed(samples: Samples) -> str:
    """Return a median in tokens/s with three digits that mean something."""
    return f"{samples.median:,.0f}" if samples.median >= 100 else f"{samples.median:.1f}"


def seconds(value: float) -> str:
    """Return a duration in seconds, without the unit."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def count(number: int, noun: str) -> str:
    """Return "1 thread", "2 threads"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def short_names(files: Sequence[str]) -> list[str]:
    """Return file names without folder and ".gguf", unless two would look the same."""
    names = [Path(file).name.removesuffix(".gguf") for file in files]
    return names if len(set(names)) == len(names) else list(files)


def bench_table(record: BenchRecord) -> Table:
    """Return one row a file."""
    table = new_table(
        "File",
        "Size\nMB",
        "Bits a\nweight",
        "Prefill\ntok/s",
        "Decode\ntok/s",
        "TTFT\ns",
        "Load\ns",
        "Peak\nMB",
    )
    names = short_names([result.file for result in record.results])
    for name, result in zip(names, record.results, strict=True):
        table.add_row(
            name,
            megabytes(result.size_bytes),
            f"{result.bits_per_weight:.2f}",
            speed(result.prefill_tokens_per_s),
            speed(result.decode_tokens_per_s),
            seconds(result.ttft_s),
            seconds(result.load_s),
            megabytes(result.memory.peak_rss_bytes),
        )
    return table


def bench_caption(record: BenchRecord) -> str:
    """Return what the figures were taken with, in one or two lines."""
    result = record.results[0]
    workload, settings = result.workload, result.settings
    return (
        f"prefill of {workload['prompt_tokens']} and decode of {workload['generate_tokens']} tokens "
        f"behind {workload['depth']} cached ones, medians of {workload['repetitions']}\n"
        f"{record.machine['cpu']}, {count(settings['threads'], 'thread')}, n_ctx {settings['n_ctx']}, "
        + (
            f"flash attention {settings['flash_attention']}"
            if "flash_attention" in settings
            else f"ONNX Runtime on {settings['provider']}"
        )
    )


def demo_table(candidates: Sequence[Candidate], reference: str) -> Table:
    """Return one row a file with quality and cost.

    Args:
        candidates: In the order of the rows.
        reference: What KLD is measured against.
    """
    table = new_table(
        "File",
        "Size\nMB",
        "Bits a\nweight",
        f"KLD vs\n{reference}",
        "Prefill\ntok/s",
        "Decode\ntok/s",
        "TTFT\ns",
        "Peak\nMB",
    )
    names = short_names([candidate.cost.file for candidate in candidates])
    for name, candidate in zip(names, candidates, strict=True):
        cost = candidate.cost
        table.add_row(
            name,
            megabytes(cost.size_bytes),
            f"{cost.bits_per_weight:.2f}",
            "-" if candidate.is_reference else f"{candidate.mean_kld:.4f}",
            speed(cost.prefill_tokens_per_s),
            speed(cost.decode_tokens_per_s),
            seconds(cost.ttft_s),
            megabytes(cost.memory.peak_rss_bytes),
        )
    return table
