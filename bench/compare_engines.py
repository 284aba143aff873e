"""Speed of several model files against each other, in turns: GGUF, ONNX folders, and folders of onnxruntime-genai.

python -m qwen_edge.bench.compare_engines model.gguf onnx-folder genai:folder [--depths 0,1024] [--threads N]
    [--genai-python PYTHON] [--repetitions 5] [--format human|json]

Each figure of a round comes from a process of its own; a round takes every file once, so that what disturbs the machine
disturbs all. The figures are medians. All decode greedily and evaluate the same number of tokens at the same depth; ours
turn tokens into text besides.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

import qwen_edge
from qwen_edge import device, hub
from qwen_edge.bench.tables import new_table
from qwen_edge.bench.workload import Workload, WorkloadRunner
from qwen_edge.config import GREEDY, LoadConfig
from qwen_edge.errors import ConfigError, NativeError
from qwen_edge.session import ReplyStream

_GENAI = "genai:"
_WORKER = Path(__file__).resolve().with_name("genai_worker.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run of one file.

    Attributes:
        prefill_tokens_per_s: New tokens of the prompt over the seconds until the first one is generated.
        decode_tokens_per_s: Generated tokens over their seconds.
        peak_memory_bytes: Of the process.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_memory_bytes: int


def measure_once(name: str, workload: Workload, n_threads: int, genai_python: str) -> Sample:
    """Measure one file in a new process.

    Args:
        name: A file, a folder or a model's name; "genai:FOLDER" goes through onnxruntime-genai.
        workload: Tokens to read and write.
        n_threads: CPU threads.
        genai_python: An interpreter that has onnxruntime-genai.

    Raises:
        NativeError: The process failed.
        ConfigError: The interpreter is not there.
    """
    numbers = [workload.prompt_tokens, workload.generate_tokens, workload.depth, n_threads]
    if name.startswith(_GENAI):
        command = [genai_python, str(_WORKER), name.removeprefix(_GENAI)]
    else:
        command = [sys.executable, "-m", "qwen_edge.bench.compare_engines", "--worker", name]
    try:
        run = subprocess.run([*command, *map(str, numbers)], capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(f"cannot run {genai_python}: {error.strerror}") from error
    try:
        return Sample(**json.loads(run.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError, TypeError) as error:
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NativeError(f"measuring {name} failed with {run.returncode}: {reason}") from error


def _measure_here(name: str, numbers: Sequence[int]) -> Sample:
    prompt_tokens, generate_tokens, depth, n_threads = numbers
    workload = Workload(prompt_tokens=prompt_tokens, generate_tokens=generate_tokens, depth=depth)
    config = LoadConfig(n_ctx=workload.rounded_n_ctx, n_threads=n_threads, prefix_cache=False, tuned=False)
    with qwen_edge.load(hub.locate(name), config) as model, model.session() as session:
        runner = WorkloadRunner(model, session, workload, GREEDY)
        runner.fill()
        runner.run()  # warm-up
        prefill_s = _seconds(runner.start_prefill())
        decode_s = _seconds(runner.start_decode())
    return Sample(
        prefill_tokens_per_s=prompt_tokens / prefill_s,
        decode_tokens_per_s=generate_tokens / decode_s,
        peak_memory_bytes=device.peak_memory_bytes(),
    )


def _seconds(stream: ReplyStream) -> float:
    start = time.perf_counter()
    for _ in stream:
        pass
    return time.perf_counter() - start


def _size_bytes(name: str) -> int:
    path = Path(name.removeprefix(_GENAI)) if name.startswith(_GENAI) else hub.locate(name)
    files = path.glob("*.onnx*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--prompt-tokens", default=256, show_default=True)
@click.option("--generate-tokens", default=64, show_default=True)
@click.option("--depths", default="0,1024", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Default: the physical cores.")
@click.option("--genai-python", default=sys.executable, help="An interpreter that has onnxruntime-genai.")
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--format", "output_format", type=click.Choice(["human", "json"]), default="human")
@click.option("--worker", is_flag=True, hidden=True)
def main(
    names: tuple[str, ...],
    prompt_tokens: int,
    generate_tokens: int,
    depths: str,
    threads: int | None,
    genai_python: str,
    repetitions: int,
    output_format: str,
    worker: bool,
) -> None:
    """Compare the speed of model files, in turns."""
    if worker:
        click.echo(json.dumps(asdict(_measure_here(names[0], [int(number) for number in names[1:]]))))
        return
    n_threads = threads or device.usable_cores()
    samples: dict[tuple[str, int], list[Sample]] = {}
    for round_ in range(repetitions):
        for depth in map(int, depths.split(",")):
            workload = Workload(prompt_tokens=prompt_tokens, generate_tokens=generate_tokens, depth=depth)
            for name in names:
                click.echo(f"round {round_ + 1} of {repetitions}, depth {depth}: {name}", err=True)
                sample = measure_once(name, workload, n_threads, genai_python)
                samples.setdefault((name, depth), []).append(sample)
    rows = [
        {
            "file": name,
            "size_bytes": _size_bytes(name),
            "depth": depth,
            **{
                key: statistics.median(getattr(sample, key) for sample in found)
                for key in Sample.__dataclass_fields__
            },
            "samples": [asdict(sample) for sample in found],
        }
        for (name, depth), found in samples.items()
    ]
    if output_format == "json":
        document = {
            "schema": "qwen-edge/compare-engines/1",
            "machine": device.describe_machine(),
            "rows": rows,
        }
        click.echo(json.dumps({**document, "threads": n_threads, "repetitions": repetitions}, indent=2))
        return
    from rich.console import Console

    table = new_table("File", "Size\nMB", "Depth", "Prefill\ntokens/s", "Decode\ntokens/s", "Peak\nMB")
    for row in rows:
        table.add_row(
            str(row["file"]),
            f"{row['size_bytes'] / 1e6:.0f}",
            str(row["depth"]),
            f"{row['prefill_tokens_per_s']:.1f}",
            f"{row['decode_tokens_per_s']:.1f}",
            f"{row['peak_memory_bytes'] / 1e6:.0f}",
        )
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
