"""`qwen-edge bench`: speed, load time and memory of model files."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.completing import complete_model
from qwen_edge.cli.output import console_on, format_option, note, print_json
from qwen_edge.cli.progress import round_progress

if TYPE_CHECKING:
    from qwen_edge.config import Switch


@click.command("bench")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=complete_model)
@click.option(
    "--prompt-tokens", type=int, default=512, show_default=True, help="New tokens to read: prefill."
)
@click.option("--generate-tokens", type=int, default=128, show_default=True, help="Tokens to write: decode.")
@click.option(
    "--depth", type=int, default=0, show_default=True, help="Tokens in the KV cache before each of the two."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads. Default: the physical cores, on ARM without the little ones.",
)
@click.option(
    "--n-ctx", type=int, help="Context, in tokens. Default: what the workload needs, rounded up to 256."
)
@click.option(
    "--flash-attention",
    type=click.Choice(["on", "off"]),
    default="off",
    show_default=True,
    help="On reads long prompts faster, off answers faster.",
)
@click.option(
    "--repetitions", type=int, default=5, show_default=True, help="Measured rounds, after one to warm up."
)
@format_option
def command(
    files: tuple[str, ...],
    prompt_tokens: int,
    generate_tokens: int,
    depth: int,
    threads: int | None,
    n_ctx: int | None,
    flash_attention: Switch,
    repetitions: int,
    output_format: str,
) -> None:
    """Measure each FILE (a GGUF file, an ONNX folder, or a model's name) in a fresh process, through the API that programs use.

    Speeds are medians; prefill and decode both start behind DEPTH cached tokens.
    """
    from qwen_edge.bench.runner import BenchConfig, run_benchmark
    from qwen_edge.bench.workload import Workload

    config = BenchConfig(
        workload=Workload(prompt_tokens=prompt_tokens, generate_tokens=generate_tokens, depth=depth),
        repetitions=repetitions,
        n_threads=threads,
        n_ctx=n_ctx,
        flash_attention=flash_attention,
    )
    if n_ctx is None:
        note(f"n_ctx {config.load_config.n_ctx}: what the workload needs, rounded up")
    with round_progress("Measuring") as progress:
        record = run_benchmark(
            files,
            config,
            progress=lambda file, done, total: progress(files.index(file) * total + done, len(files) * total),
        )
    for text in record.warnings:
        note(f"warning: {text}")
    if output_format == "json":
        print_json(record.to_dict())
        return
    from qwen_edge.bench.tables import bench_caption, bench_table

    console = console_on(sys.stdout)
    console.print(bench_table(record))
    console.print(bench_caption(record))
