"""What batching gives: several sessions together against one after the other, and what a long prompt costs the others.

python -m qwen_edge.bench.batching FILE [--sessions 1,2,4,8] [--threads N] [--repetitions 5] [--batched-bench PROGRAM]

Each session decodes from a prompt of its own. The two ways are measured in turns, on one loaded model, and so is
llama-batched-bench where it is named; figures are medians. Set LLAMA_CPP_LIB_PATH to its libraries to compare one build.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np

import qwen_edge
from qwen_edge import hub
from qwen_edge.bench.tables import new_table
from qwen_edge.config import GREEDY, LoadConfig
from qwen_edge.errors import NativeError
from qwen_edge.model import Model
from qwen_edge.session import Session

_PROMPT_TOKENS = 64
_GENERATE_TOKENS = 64
_LONG_PROMPT_TOKENS = 2000
_TALK_TOKENS = 160
_SEED = 0


def decode_speed(sessions: Sequence[Session], prompts: Sequence[list[int]], *, together: bool) -> float:
    """Return tokens a second over all sessions; prompts are in the cache before the clock starts."""
    works = [
        _work(session, prompt, _GENERATE_TOKENS) for session, prompt in zip(sessions, prompts, strict=True)
    ]
    for session, prompt in zip(sessions, prompts, strict=True):
        _work(session, prompt, 1)()
    start_s = time.perf_counter()
    if together:
        _run_all(works)
    else:
        for work in works:
            work()
    return len(works) * _GENERATE_TOKENS / (time.perf_counter() - start_s)


def token_gaps(model: Model, prompts: Sequence[list[int]], long_prompt: list[int] | None) -> list[float]:
    """Return the seconds between tokens of two talking sessions, while a third reads a long prompt or is idle."""
    talkers, reader = [model.session() for _ in prompts], model.session()
    gaps: list[float] = []
    reading = threading.Event()

    def talk(session: Session, prompt: list[int]) -> None:
        last_s = 0.0
        stream = session.stream_tokens(prompt, max_tokens=_TALK_TOKENS, sampling=GREEDY, ignore_end=True)
        for index, _ in enumerate(stream):
            now_s = time.perf_counter()
            if index > 0 and (long_prompt is None or reading.is_set()):
                gaps.append(now_s - last_s)
            last_s = now_s

    def read() -> None:
        time.sleep(0.3)
        reading.set()
        if long_prompt is not None:
            for _ in reader.stream_tokens(long_prompt, max_tokens=1, sampling=GREEDY):
                pass
        reading.clear()

    _run_all([*(lambda s=s, p=p: talk(s, p) for s, p in zip(talkers, prompts, strict=True)), read])
    for session in [*talkers, reader]:
        session.close()
    return gaps


def run_batched_bench(program: Path, file: Path, n_sessions: int, n_threads: int) -> float:
    """Return llama-batched-bench's tokens a second of decoding n_sessions sequences together.

    Raises:
        NativeError: It fails, or prints something else.
    """
    command = [
        str(program), "-m", str(file), "-c", str((_PROMPT_TOKENS + _GENERATE_TOKENS) * n_sessions), "-b", "512", "-ub", "512",
        "-npp", str(_PROMPT_TOKENS), "-ntg", str(_GENERATE_TOKENS), "-npl", str(n_sessions), "-t", str(n_threads),
        "-fa", "off", "--output-format", "jsonl",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    try:
        return float(json.loads(lines[-1])["speed_tg"])
    except (IndexError, KeyError, ValueError) as error:
        raise NativeError(f"{program.name} printed no result: {run.stderr.strip()[-200:]}") from error


def _work(session: Session, prompt: list[int], n_tokens: int) -> Callable[[], None]:
    def run() -> None:
        for _ in session.stream_tokens(prompt, max_tokens=n_tokens, sampling=GREEDY, ignore_end=True):
            pass

    return run


def _run_all(works: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _random_tokens(model: Model, count: int, seed: int) -> list[int]:
    # Ordinary tokens: the first ones of every vocabulary are bytes and short words.
    tokens = np.random.default_rng(seed).integers(0, min(1000, model.info.n_vocab), count)
    return [int(token) for token in tokens]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--sessions", "counts", default="1,2,4,8", show_default=True, help="How many sessions, with commas."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the physical cores.")
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--batched-bench",
    type=click.Path(path_type=Path, exists=True),
    help="llama-batched-bench, to compare with.",
)
def main(file: Path, counts: str, threads: int | None, repetitions: int, batched_bench: Path | None) -> None:
    """Measure decode speed of several sessions of FILE, together and one after the other."""
    from rich.console import Console

    path = hub.locate(file)
    table = new_table(
        "Sessions",
        "One after\nthe other\ntok/s",
        "Together\ntok/s",
        "Gain",
        "llama-batched-\nbench tok/s",
        "Ratio",
    )
    for count in map(int, counts.split(",")):
        config = LoadConfig(
            tuned=False,
            n_ctx=_PROMPT_TOKENS + _GENERATE_TOKENS + 1,
            n_threads=threads,
            n_sessions=max(2, count),
        )
        samples: dict[str, list[float]] = {"apart": [], "together": [], "peer": []}
        with qwen_edge.load(path, config) as model:
            sessions = [model.session() for _ in range(count)]
            prompts = [_random_tokens(model, _PROMPT_TOKENS, _SEED + i) for i in range(count)]
            for _ in range(repetitions):
                samples["apart"].append(decode_speed(sessions, prompts, together=False))
                samples["together"].append(decode_speed(sessions, prompts, together=True))
                if batched_bench is not None:
                    n_threads = int(model.info.settings["threads"])
                    samples["peer"].append(run_batched_bench(batched_bench, path, count, n_threads))
        apart, together = (statistics.median(samples[key]) for key in ("apart", "together"))
        peer = statistics.median(samples["peer"]) if samples["peer"] else None
        table.add_row(
            str(count), f"{apart:.1f}", f"{together:.1f}", f"{together / apart:.2f}",
            f"{peer:.1f}" if peer else "-", f"{together / peer:.2f}" if peer else "-",
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    config = LoadConfig(n_ctx=_LONG_PROMPT_TOKENS + 16, n_threads=threads, n_sessions=3, tuned=False)
    with qwen_edge.load(path, config) as model:
        prompts = [_random_tokens(model, _PROMPT_TOKENS, _SEED + i) for i in range(2)]
        for name, prompt in (
            ("alone", None),
            (f"while {_LONG_PROMPT_TOKENS} tokens are read", _random_tokens(model, _LONG_PROMPT_TOKENS, 9)),
        ):
            gaps = [gap for _ in range(repetitions) for gap in token_gaps(model, prompts, prompt)]
            p50, p95 = np.quantile(gaps, [0.5, 0.95]) * 1000
            console.print(
                f"time between tokens of two sessions, {name}: p50 {p50:.1f} ms, p95 {p95:.1f} ms ({len(gaps)})"
            )


if __name__ == "__main__":
    main()
