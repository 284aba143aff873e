"""What speculation gains: a model with and without it, in turns, on workloads that suit it and on one that does not.

python -m qwen_edge.bench.speculation FILE [--draft FILE] [--turns 5] [--max-tokens 200] [--workload NAME]
python -m qwen_edge.bench.speculation FILE --calls [--depth 256]
python -m qwen_edge.bench.speculation FILE --acceptance 0.6 [--draft FILE]

The second form measures what a call over several tokens takes, beside one over one token. The third forces acceptance,
for weights that are random and have none of their own: the reply is what plain decoding said, each proposal is the right
token with that probability, and a draft model evaluates what it is made to propose. Set LLAMA_CPP_LIB_PATH to measure
another build.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import click

import qwen_edge
from qwen_edge import hub
from qwen_edge.bench.tables import new_table
from qwen_edge.config import GREEDY, LoadConfig, SamplingConfig, SpeculationMode
from qwen_edge.engines.base import Context, Engine
from qwen_edge.generation import Meter, TokenCache
from qwen_edge.model import Model
from qwen_edge.speculation import Speculation
from qwen_edge.speculation_gain import DRAFT_KIND
from qwen_edge.speculation_proposer import Proposal, Proposer
from qwen_edge.speculation_trial import measure
from qwen_edge.types import Message

CALL_LENGTHS = (1, 2, 3, 5, 9, 17)
_FORCED_TOKENS = 96
_FORCED_PROMPT_TOKENS = 128
_LONGEST_FORCED_DRAFT = 4

_CODE = '''\
def moving_average(values, window):
    """Return the average of each run of `window` values."""
    if window < 1:
        raise ValueError("window must be at least 1")
    sums = 0.0
    result = []
    for index, value in enumerate(values):
        sums += value
        if index >= window:
            sums -= values[index - window]
        if index >= window - 1:
            result.append(sums / window)
    return result


def write_report(path, rows):
    """Write rows as lines of text, a total below them."""
    total = 0
    with open(path, "w", encoding="utf-8") as file:
        for name, amount in rows:
            file.write(f"{name}: {amount}\\n")
            total += amount
        file.write(f"total: {total}\\n")
    return total
'''

# Greedy but for the last: what is drawn at this temperature hardly ever repeats.
_RESTLESS = SamplingConfig(temperature=2.0, top_k=200, top_p=1.0, seed=1)
WORKLOADS: dict[str, tuple[tuple[str, ...], SamplingConfig]] = {
    "edit": (
        (
            f"Rename the parameter `window` to `size` in this code, and change nothing else:\n\n```python\n{_CODE}```",
            f"Add type hints to both functions, and change nothing else:\n\n```python\n{_CODE}```",
        ),
        GREEDY,
    ),
    "code": (
        (
            "Write a Python class for a stack with push, pop, peek and a size, with docstrings.",
            "Write a Python function that parses a CSV line with quoted fields, and tests for it.",
        ),
        GREEDY,
    ),
    "chat": (
        (
            "Why is the sky blue, and why is a sunset red?",
            "I have two days in Vienna. What should I see, and in which order?",
        ),
        GREEDY,
    ),
    "worst": (("Write words that have nothing to do with each other.",), _RESTLESS),
}


class ForcedProposals(Proposer):
    """Proposes a known reply, each token right with a probability; a draft model evaluates what it proposes."""

    is_free = False

    def __init__(self, whole: Sequence[int], acceptance: float, draft: Context | None) -> None:
        """Begin.

        Args:
            whole: Prompt and reply.
            acceptance: Probability of a right token.
            draft: Holds nothing yet; None proposes at no cost.
        """
        self._whole, self._acceptance, self._draft = whole, acceptance, draft
        self._random = random.Random(0)
        self._length = 0
        self._read_s = 0.0

    def follow(self, tokens: Sequence[int]) -> None:
        """See Proposer.follow."""
        self._length = len(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """See Proposer.extend."""
        self._length += len(tokens)

    def propose(self, most: int) -> Sequence[Proposal]:
        """See Proposer.propose."""
        end = min(self._length + min(most, _LONGEST_FORCED_DRAFT), len(self._whole))
        found = [
            token if self._random.random() < self._acceptance else token + 1
            for token in self._whole[self._length : end]
        ]
        self._read_s = 0.0
        if self._draft is not None and found:
            draft = self._draft
            start = time.perf_counter()
            draft.rewind(min(draft.n_past, self._length - 1))
            is_first = draft.n_past == 0
            draft.append(self._whole[draft.n_past : self._length])
            if is_first:
                self._read_s = time.perf_counter() - start
            for token in found[:-1]:
                draft.append((token,))
        return [Proposal(token, DRAFT_KIND) for token in found]

    def uncounted_s(self) -> float:
        """See Proposer.uncounted_s."""
        return self._read_s

    def cancel(self) -> None:
        """See Proposer.cancel: nobody does."""

    def clear_cancel(self) -> None:
        """See Proposer.clear_cancel."""

    def close(self) -> None:
        """See Proposer.close."""
        if self._draft is not None:
            self._draft.close()


def call_costs(engine: Engine, depth: int, turns: int) -> dict[int, float]:
    """Return the seconds of calls over CALL_LENGTHS tokens behind `depth` others, logits of all kept: medians of turns."""
    draw = random.Random(0)
    context = engine.new_context()
    for start in range(0, depth, context.n_batch):
        context.append(_tokens(draw, min(context.n_batch, depth - start)))
    samples: dict[int, list[float]] = {length: [] for length in CALL_LENGTHS}
    for turn in range(turns + 1):
        for length in CALL_LENGTHS:
            tokens = _tokens(draw, length)
            start_s = time.perf_counter()
            if length == 1:
                context.append(tokens)
            else:
                context.append_all(tokens)
            if turn > 0:  # the first warms up
                samples[length].append(time.perf_counter() - start_s)
            context.rewind(depth)
    context.close()
    return {length: statistics.median(each) for length, each in samples.items()}


def forced_gain(
    engine: Engine, draft: Engine | None, acceptance: float, turns: int
) -> tuple[float, float, str]:
    """Return decode time without over with forced proposals (median of turns), tokens a call, and the verdict."""
    prompt = _tokens(random.Random(1), _FORCED_PROMPT_TOKENS)
    reply: list[int] = []
    gains: list[float] = []
    for _ in range(turns):
        plain_s, _ = _decode(TokenCache(engine.new_context()), prompt, reply)
        context = engine.new_context()
        proposer = ForcedProposals(
            [*prompt, *reply], acceptance, None if draft is None else draft.new_context()
        )
        speculation = Speculation(context, proposer)
        with_s, calls = _decode(TokenCache(context, speculation), prompt, reply, uncounted=proposer)
        gains.append(plain_s / with_s)
    return statistics.median(gains), (len(reply) - 1) / calls, speculation.use


def _decode(
    cache: TokenCache, prompt: list[int], reply: list[int], uncounted: Proposer | None = None
) -> tuple[float, int]:
    """Decode _FORCED_TOKENS and return the seconds and the calls; an empty reply is filled, another is followed."""
    cache.prefill(prompt, Meter())
    cache.context.start_sampling(GREEDY)
    if cache.speculation is not None:
        cache.speculation.begin(prompt)
    drawn = []
    read_s = 0.0
    start_s = time.perf_counter()
    for i in range(_FORCED_TOKENS):
        token = cache.context.sample()
        drawn.append(reply[i] if reply else token)
        if i + 1 < _FORCED_TOKENS:
            cache.append((drawn[-1],), _FORCED_TOKENS - i - 2)
            if uncounted is not None:
                read_s = max(read_s, uncounted.uncounted_s())
    spent_s = time.perf_counter() - start_s - read_s
    accepted = 0 if cache.speculation is None else cache.speculation.accepted_tokens
    if not reply:
        reply += drawn
    cache.close()
    return spent_s, _FORCED_TOKENS - 1 - accepted


def _tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(1000) for _ in range(count)]


def _prompt(model: Model, text: str) -> list[int]:
    return model.engine.tokenize(model.template.render([Message("user", text)]))


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--draft", type=click.Path(path_type=Path), help="A small model of the same vocabulary.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the physical cores.")
@click.option("--turns", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--max-tokens", type=click.IntRange(min=2), default=200, show_default=True)
@click.option("--workload", "names", type=click.Choice(list(WORKLOADS)), multiple=True, help="Default: all.")
@click.option("--flash-attention", type=click.Choice(["on", "off"]), default="off", show_default=True)
@click.option("--calls", is_flag=True, help="Measure calls by length instead.")
@click.option("--depth", type=click.IntRange(min=1), default=256, show_default=True, help="For --calls.")
@click.option("--acceptance", type=click.FloatRange(0, 1), help="Force this acceptance instead.")
def main(
    file: Path, draft: Path | None, threads: int | None, turns: int, max_tokens: int, names: tuple[str, ...],
    flash_attention: str, calls: bool, depth: int, acceptance: float | None,
) -> None:  # fmt: skip
    """Measure what speculation gains on FILE."""
    from rich.console import Console

    console = Console(highlight=False)
    config = LoadConfig(n_ctx=1024, n_threads=threads, flash_attention=flash_attention, tuned=False)  # type: ignore[arg-type]
    path = hub.locate(file)
    if calls or acceptance is not None:
        # Without the check of vocabularies: random weights have none.
        with qwen_edge.load(path, config) as model:
            if calls:
                seconds = call_costs(model.engine, depth, turns)
                for length, value in seconds.items():
                    console.print(f"{length:>3} tokens  {value * 1000:8.1f} ms  {value / seconds[1]:5.2f}")
                return
            small = qwen_edge.load(hub.locate(draft), config) if draft is not None else None
            gain, tokens_a_call, use = forced_gain(
                model.engine, small.engine if small is not None else None, acceptance or 0.0, turns
            )
            console.print(
                f"acceptance forced to {acceptance}: gain {gain:.2f}, {tokens_a_call:.2f} tokens a call, {use}"
            )
            if small is not None:
                small.close()
        return
    mode: SpeculationMode = "prompt_lookup" if draft is None else "draft"
    table = new_table("Workload", "Accepted", "Proposed\na token", "Tokens\na call", "Gain", "Same\ntext")
    with qwen_edge.load(path, config, draft_model=draft) as model:
        for name in names or WORKLOADS:
            texts, sampling = WORKLOADS[name]
            prompts = [_prompt(model, text) for text in texts]
            trial = measure(model, prompts, mode=mode, max_tokens=max_tokens, turns=turns, sampling=sampling)
            table.add_row(
                name, f"{trial.acceptance:.0%}", f"{trial.proposed_share:.2f}", f"{trial.tokens_a_call:.2f}",
                f"{trial.gain:.2f}", f"{trial.same_text:.0%}",
            )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
