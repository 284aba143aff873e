"""How fast builds and kernels are beside each other: the same file, in turns, each turn in a child of its own.

Run as `python -m qwen_edge.native.speed_trial FILE fast|safe TRIAL`, with a Trial in JSON, it is one turn.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen_edge import device
from qwen_edge.catalog_types import Shape
from qwen_edge.config import LoadConfig, Switch
from qwen_edge.native import child
from qwen_edge.native.builds import Build
from qwen_edge.native.probe import Kernels

# Four layers of Qwen3-0.6B with a small vocabulary: 37 MB in Q4_0, the kernels of the real model.
SPEED_SHAPE = Shape(
    n_layers=4,
    hidden_size=1024,
    ffn_size=3072,
    n_heads=16,
    n_kv_heads=8,
    head_dim=128,
    vocab_size=2048,
    is_tied=True,
    has_qk_norm=True,
)
SPEED_TYPE = "Q4_0"

_MAX_TURNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is timed in a turn; prefill and decode begin behind the same tokens, as llama-bench has it.

    Attributes:
        n_threads: CPU threads. One is timed in CPU time, which other programs on the machine hardly change.
        n_prompt: Tokens of a prefill.
        n_decode: Tokens of a decode, one by one.
        depth: Tokens in the cache before each.
        n_batch: Tokens of one native call, at most.
        flash_attention: "on" or "off".
        measuring_s: Of prefill, and of decode; one round is made in any case.
    """

    n_threads: int
    n_prompt: int = 256
    n_decode: int = 64
    depth: int = 0
    n_batch: int = 256
    flash_attention: Switch = "off"
    measuring_s: float = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one child measured.

    Attributes:
        prefill_tokens_per_s: Median over its rounds.
        decode_tokens_per_s: Median over its rounds.
        system_info: What the library says it was built with (llama_print_system_info).
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    system_info: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """What is measured.

    Attributes:
        name: How the report calls it.
        build: The native library; None for what this process uses.
        kernels: "fast" or "safe".
    """

    name: str
    build: Build | None
    kernels: Kernels = "fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Medians over turns.

    Attributes:
        prefill_tokens_per_s: Of n_prompt tokens.
        decode_tokens_per_s: Of n_decode tokens, one by one.
        n_turns: Turns that the medians are of.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    n_turns: int


def measure_speeds(
    contestants: Sequence[Contestant], file: Path, *, budget_s: float, n_threads: int | None = None
) -> dict[str, Speed]:
    """Measure in turns, so that a machine that is busy for a while is so for all.

    Args:
        contestants: Of different names.
        file: A GGUF file.
        budget_s: Wall clock for all; a turn that would go beyond it is ended.
        n_threads: CPU threads; None for as many as a model is run with.

    Returns:
        Speeds by name; who did not finish a turn is missing.
    """
    ends = time.monotonic() + budget_s
    trial = Trial(n_threads=n_threads or device.default_threads())
    turns: dict[str, list[Turn]] = {contestant.name: [] for contestant in contestants}
    for turn in range(_MAX_TURNS):
        for contestant in contestants:
            left_s = ends - time.monotonic()
            taken = turns[contestant.name]
            if left_s <= 0 or len(taken) < turn:
                continue  # out of time, or it died in the turn before
            measured, _ = run_turn(
                file, trial, timeout_s=left_s, build=contestant.build, kernels=contestant.kernels
            )
            taken += [measured] if measured else []
    return {
        name: Speed(
            prefill_tokens_per_s=statistics.median(turn.prefill_tokens_per_s for turn in taken),
            decode_tokens_per_s=statistics.median(turn.decode_tokens_per_s for turn in taken),
            n_turns=len(taken),
        )
        for name, taken in turns.items()
        if taken
    }


def run_turn(
    file: Path, trial: Trial, *, timeout_s: float, build: Build | None = None, kernels: Kernels = "fast"
) -> tuple[Turn | None, str]:
    """Measure once, in a child.

    Args:
        file: A GGUF file.
        trial: What is timed.
        timeout_s: When the child is ended.
        build: The native library; None for what this process uses.
        kernels: "fast" or "safe".

    Returns:
        What it measured, or None and why it did not.
    """
    process = child.start_child(
        "qwen_edge.native.speed_trial", [str(file), kernels, json.dumps(asdict(trial))], build=build
    )
    stdout, stderr, crash = child.finish(process, timeout_s)
    if lines := child.json_lines(stdout):
        return Turn(**lines[-1]), ""
    return None, crash or child.last_line(stderr) or f"it ended with exit code {process.returncode}"


def _run_as_child(path: str, kernels: str, trial: Trial) -> None:
    from qwen_edge.native import library
    from qwen_edge.native.handles import NativeContext, NativeModel

    model = NativeModel(path, safe_kernels=kernels == "safe")
    n_ctx = trial.depth + max(trial.n_prompt, trial.n_decode)
    config = LoadConfig(
        n_ctx=max(n_ctx, trial.n_batch), n_batch=trial.n_batch, flash_attention=trial.flash_attention
    )
    context = NativeContext(model, config, trial.n_threads)

    def append(n_tokens: int, n_batch: int) -> None:
        tokens = [(7 * i + 3) % model.n_vocab for i in range(n_tokens)]
        for start in range(0, n_tokens, n_batch):
            context.append(tokens[start : start + n_batch])
            context.last_logits()

    def prefill() -> None:
        context.rewind(trial.depth)
        append(trial.n_prompt, trial.n_batch)

    def decode() -> None:
        context.rewind(trial.depth)
        append(trial.n_decode, 1)

    clock = time.process_time if trial.n_threads == 1 else time.perf_counter
    append(trial.depth, trial.n_batch)
    prefill()  # the first one faults pages in
    turn = Turn(
        prefill_tokens_per_s=trial.n_prompt / _median_s(prefill, clock, trial.measuring_s),
        decode_tokens_per_s=trial.n_decode / _median_s(decode, clock, trial.measuring_s),
        system_info=library.system_info(),
    )
    model.close()
    print(json.dumps(asdict(turn)))  # noqa: T201 - the parent reads it


def _median_s(action: Callable[[], None], clock: Callable[[], float], measuring_s: float) -> float:
    """Return the median time of an action that is repeated for a while."""
    rounds: list[float] = []
    while not rounds or sum(rounds) < measuring_s:
        started = clock()
        action()
        rounds.append(clock() - started)
    return statistics.median(rounds)


if __name__ == "__main__":
    _run_as_child(sys.argv[1], sys.argv[2], Trial(**json.loads(sys.argv[3])))
