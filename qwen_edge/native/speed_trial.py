"""How fast builds and kernels are beside each other: the same file, in turns, each turn in a child of its own.

Run as `python -m qwen_edge.native.speed_trial FILE fast|safe THREADS`, it is one turn.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwen_edge import device
from qwen_edge.catalog_types import Shape
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

_N_PROMPT_TOKENS = 256
_N_DECODED_TOKENS = 64
# Of measuring in one turn, for prefill and for decode; one round is made in any case.
_ROUNDS_S = 0.4
_MAX_TURNS = 3


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
        prefill_tokens_per_s: Of a batch of 256 tokens.
        decode_tokens_per_s: One by one, behind these.
        n_turns: Turns that the medians are of.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    n_turns: int


@dataclass(slots=True)
class _Turns:
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


def measure_speeds(
    contestants: Sequence[Contestant], file: Path, *, budget_s: float, n_threads: int | None = None
) -> dict[str, Speed]:
    """Measure in turns, so that a machine that is busy for a while is so for all.

    Args:
        contestants: Of different names.
        file: A GGUF file.
        budget_s: Wall clock for all; a turn that would go beyond it is ended.
        n_threads: CPU threads; None for as many as a model is run with. One is timed in CPU time, which other programs
            on the machine hardly change.

    Returns:
        Speeds by name; who did not finish a turn is missing.
    """
    ends = time.monotonic() + budget_s
    turns = {contestant.name: _Turns() for contestant in contestants}
    for turn in range(_MAX_TURNS):
        for contestant in contestants:
            left_s = ends - time.monotonic()
            taken = turns[contestant.name]
            if left_s <= 0 or len(taken.prefill) < turn:
                continue  # out of time, or it died in the turn before
            process = child.start_child(
                "qwen_edge.native.speed_trial",
                [str(file), contestant.kernels, str(n_threads or device.usable_cores())],
                build=contestant.build,
            )
            stdout, _, _ = child.finish(process, left_s)
            for line in child.json_lines(stdout):
                taken.prefill.append(float(line["prefill_tokens_per_s"]))
                taken.decode.append(float(line["decode_tokens_per_s"]))
    return {
        name: Speed(
            prefill_tokens_per_s=statistics.median(taken.prefill),
            decode_tokens_per_s=statistics.median(taken.decode),
            n_turns=len(taken.prefill),
        )
        for name, taken in turns.items()
        if taken.prefill
    }


def _run_as_child(path: str, kernels: str, n_threads: int) -> None:
    from qwen_edge.config import LoadConfig
    from qwen_edge.native.handles import NativeContext, NativeModel

    model = NativeModel(path, safe_kernels=kernels == "safe")
    config = LoadConfig(n_ctx=512, n_batch=_N_PROMPT_TOKENS)
    context = NativeContext(model, config, n_threads)
    prompt = [(7 * i + 3) % model.n_vocab for i in range(_N_PROMPT_TOKENS)]

    def prefill() -> None:
        context.rewind(0)
        context.append(prompt)
        context.last_logits()

    def decode() -> None:
        context.rewind(_N_PROMPT_TOKENS)
        for token in prompt[:_N_DECODED_TOKENS]:
            context.append([token])
            context.last_logits()

    clock = time.process_time if n_threads == 1 else time.perf_counter
    prefill()  # the first one faults pages in
    speeds = {
        "prefill_tokens_per_s": _N_PROMPT_TOKENS / _median_s(prefill, clock),
        "decode_tokens_per_s": _N_DECODED_TOKENS / _median_s(decode, clock),
    }
    model.close()
    print(json.dumps(speeds))  # noqa: T201 - the parent reads it


def _median_s(action: Callable[[], None], clock: Callable[[], float]) -> float:
    """Return the median time of an action that is repeated for _ROUNDS_S."""
    rounds: list[float] = []
    while not rounds or sum(rounds) < _ROUNDS_S:
        started = clock()
        action()
        rounds.append(clock() - started)
    return statistics.median(rounds)


if __name__ == "__main__":
    _run_as_child(sys.argv[1], sys.argv[2], int(sys.argv[3]))
