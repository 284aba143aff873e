"""Our speed against llama-bench's, by an external clock round the public stream.

python -m qwen_edge.bench.compare_llama_bench --llama-bench PROGRAM --file FILE [--threads N] [--depths 0,512]
    [--flash-attention off,on] [--repetitions 5] [--format human|json]

One round is llama-bench, then ours, and so on in turns: what disturbs the machine disturbs both. The figures are medians.
Ours include sampling and turning tokens into text, llama-bench's do neither. Both evaluate the same number of tokens at
the same depth. Set LLAMA_CPP_LIB_PATH to the folder of llama-bench's libraries to compare the same build.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

import qwen_edge
from qwen_edge import device, hub
from qwen_edge.bench.peers import PeerSpeed, run_llama_bench
from qwen_edge.bench.tables import new_table
from qwen_edge.bench.workload import Workload, WorkloadRunner
from qwen_edge.config import LoadConfig, Switch
from qwen_edge.native import library
from qwen_edge.session import ReplyStream

_WORKLOAD = Workload(prompt_tokens=512, generate_tokens=128)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides at one setting.

    Attributes:
        depth: Tokens in the KV cache before each measurement.
        flash_attention: "on" or "off".
        ours: One a round.
        theirs: One a round.
    """

    depth: int
    flash_attention: Switch
    ours: list[PeerSpeed] = field(default_factory=list)
    theirs: list[PeerSpeed] = field(default_factory=list)

    def summary(self, phase: str) -> dict[str, Any]:
        """Return medians, their ratio and the samples of "prefill" or "decode"."""
        ours = [getattr(speed, f"{phase}_tokens_per_s") for speed in self.ours]
        theirs = [getattr(speed, f"{phase}_tokens_per_s") for speed in self.theirs]
        ratio = statistics.median(ours) / statistics.median(theirs)
        return {
            "ours": round(statistics.median(ours), 3),
            "llama_bench": round(statistics.median(theirs), 3),
            "ratio": round(ratio, 4),
            "samples": {"ours": ours, "llama_bench": theirs},
        }

    def to_dict(self) -> dict[str, Any]:
        """Return setting and both phases, JSON-ready."""
        return {
            "depth": self.depth,
            "flash_attention": self.flash_attention,
            "prefill": self.summary("prefill"),
            "decode": self.summary("decode"),
        }


def _timed_tokens_per_s(stream: ReplyStream, tokens: int) -> float:
    """Return tokens over the seconds from before the first to after the last step of a reply."""
    start = time.perf_counter()
    for _ in stream:
        pass
    return tokens / (time.perf_counter() - start)


def compare(
    program: Path, file: Path, n_threads: int, depth: int, flash_attention: Switch, repetitions: int
) -> Comparison:
    """Measure both sides in turns at one setting.

    Args:
        program: llama-bench.
        file: A GGUF file.
        n_threads: For both.
        depth: For both.
        flash_attention: For both.
        repetitions: Rounds.
    """
    workload = Workload(
        prompt_tokens=_WORKLOAD.prompt_tokens, generate_tokens=_WORKLOAD.generate_tokens, depth=depth
    )
    config = LoadConfig(
        n_ctx=workload.rounded_n_ctx, n_threads=n_threads, flash_attention=flash_attention, tuned=False
    )
    result = Comparison(depth, flash_attention)
    with qwen_edge.load(file, config) as model, model.session() as session:
        runner = WorkloadRunner(model, session, workload)
        runner.fill()
        runner.check(runner.run())  # warm-up
        for _ in range(repetitions):
            result.theirs.append(
                run_llama_bench(
                    program,
                    file,
                    prompt_tokens=workload.prompt_tokens,
                    generate_tokens=workload.generate_tokens,
                    depth=depth,
                    n_threads=n_threads,
                    flash_attention=flash_attention,
                    load_mode=config.load_mode,
                )
            )
            # The prompt of the decode measurement is one token: as many evaluations as llama-bench's tg.
            result.ours.append(
                PeerSpeed(
                    prefill_tokens_per_s=_timed_tokens_per_s(runner.start_prefill(), workload.prompt_tokens),
                    decode_tokens_per_s=_timed_tokens_per_s(runner.start_decode(), workload.generate_tokens),
                )
            )
    return result


def _print_table(comparisons: list[Comparison]) -> None:
    from rich.console import Console

    table = new_table(
        "Flash attention, depth", "Prefill\nours", "Prefill\nllama-bench", "Ratio", "Decode\nours",
        "Decode\nllama-bench", "Ratio",
    )  # fmt: skip
    for comparison in comparisons:
        cells = []
        for phase in ("prefill", "decode"):
            row = comparison.summary(phase)
            cells += [f"{row['ours']:.1f}", f"{row['llama_bench']:.1f}", f"{row['ratio']:.3f}"]
        table.add_row(f"{comparison.flash_attention}, {comparison.depth}", *cells)
    Console(highlight=False).print(table)


@click.command()
@click.option(
    "--llama-bench",
    "program",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    required=True,
)
@click.option("--file", required=True, help="A GGUF file, or a model's name.")
@click.option("--threads", type=click.IntRange(min=1), help="For both sides. Default: the physical cores.")
@click.option("--depths", default="0,512", show_default=True)
@click.option("--flash-attention", "switches", default="off,on", show_default=True)
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--format", "output_format", type=click.Choice(["human", "json"]), default="human", show_default=True
)
def main(
    program: Path,
    file: str,
    threads: int | None,
    depths: str,
    switches: str,
    repetitions: int,
    output_format: str,
) -> None:
    """Compare our speed with llama-bench's on the same file, in turns."""
    path = hub.locate(file)
    n_threads = threads or device.usable_cores()
    comparisons = []
    for switch in switches.split(","):
        if switch not in ("on", "off"):
            raise click.BadParameter(f"{switch!r} is neither on nor off", param_hint="--flash-attention")
        for depth in map(int, depths.split(",")):
            click.echo(f"flash attention {switch}, depth {depth}", err=True)
            flash_attention: Switch = "on" if switch == "on" else "off"
            comparisons.append(compare(program, path, n_threads, depth, flash_attention, repetitions))
    if output_format == "human":
        _print_table(comparisons)
        return
    import json

    document = {
        "schema": "qwen-edge/compare/1",
        "machine": {**device.describe_machine(), "native": library.build_facts()},
        "file": str(path),
        "threads": n_threads,
        "comparisons": [comparison.to_dict() for comparison in comparisons],
    }
    click.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
