"""What a file is measured with: exact numbers of tokens, through the session that users have.

::

    one repetition      cached          new                     generated
      prefill           depth tokens  + prompt_tokens        -> 1
      decode            depth tokens  + 1                    -> generate_tokens

Both start at the same depth, as `llama-bench -d` has it: pp512 and tg128 of that program are comparable with these.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from qwen_edge.catalog import recommended_sampling
from qwen_edge.config import SamplingConfig
from qwen_edge.errors import ConfigError
from qwen_edge.model import Model
from qwen_edge.session import ReplyStream, Session
from qwen_edge.types import GenerationStats

# llama.cpp allocates the KV cache in steps of 256 tokens. Source: llama_context constructor, GGML_PAD(n_ctx, 256).
_N_CTX_STEP = 256
_SEED = 1

# Text to fill prompts with; what it says does not matter to the speed of a dense model.
_TEXT = (
    "The lighthouse keeper wrote down the weather every hour: the wind, the height of the waves, and the ships "
    "that passed. At night he climbed the 214 steps, trimmed the lamp and counted the seconds between two flashes. "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How many tokens are read and written.

    Attributes:
        prompt_tokens: New tokens of the prefill measurement.
        generate_tokens: Tokens of the decode measurement.
        depth: Tokens that are in the KV cache before each of the two.
    """

    prompt_tokens: int = 512
    generate_tokens: int = 128
    depth: int = 0

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 1), ("generate_tokens", 2), ("depth", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least} (not {getattr(self, name)})")

    @property
    def needed_n_ctx(self) -> int:
        """The smallest context that holds it."""
        return self.depth + max(self.prompt_tokens, self.generate_tokens) + 1

    @property
    def rounded_n_ctx(self) -> int:
        """That context, rounded up to a multiple of 256."""
        return -(-self.needed_n_ctx // _N_CTX_STEP) * _N_CTX_STEP

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """The stats of the two replies of one repetition."""

    prefill: GenerationStats
    decode: GenerationStats


class WorkloadRunner:
    """Runs a workload in one session, again and again.

    Prompts begin with the same `depth` tokens and go on differently each time, so that the session's own reuse of
    its KV cache keeps exactly `depth` tokens: no hook and no clearing is needed.
    """

    def __init__(
        self, model: Model, session: Session, workload: Workload, sampling: SamplingConfig | None = None
    ) -> None:
        """Build the prompts.

        Args:
            model: For its vocabulary and recommended sampling.
            session: A session of it, with a context that holds the workload.
            workload: The numbers.
            sampling: How tokens are chosen; None as the model's makers advise.
        """
        self._session = session
        self._workload = workload
        self._sampling = dataclasses.replace(
            sampling or recommended_sampling(model.info.architecture, thinking=False), seed=_SEED
        )
        text = model.engine.tokenize(_TEXT)
        repeats = -(-(workload.depth + workload.prompt_tokens) // len(text))
        self._tokens = text * (repeats + 1)
        self._first_tokens = itertools.cycle(sorted(set(text)))

    def fill(self) -> None:
        """Bring `depth` tokens into the cache; part of the warm-up."""
        if self._workload.depth:
            _exhaust(self._stream(self._tokens[: self._workload.depth], 1))

    def start_prefill(self) -> ReplyStream:
        """Return the reply of the prefill measurement, not begun: one token after `prompt_tokens` new ones."""
        return self._stream(self._prompt(self._workload.prompt_tokens), 1)

    def start_decode(self) -> ReplyStream:
        """Return the reply of the decode measurement, not begun: `generate_tokens` after one new token."""
        return self._stream(self._prompt(1), self._workload.generate_tokens)

    def run(self) -> Repetition:
        """Run both once."""
        return Repetition(prefill=_exhaust(self.start_prefill()), decode=_exhaust(self.start_decode()))

    def check(self, repetition: Repetition) -> None:
        """Make sure that exactly the tokens of the workload were read and written."""
        workload = self._workload
        prefill, decode = repetition.prefill, repetition.decode
        for stats in (prefill, decode):
            # A new token is not evaluated alone: with a single one the last of the depth is evaluated again.
            is_single = stats.prompt_tokens - workload.depth == 1
            assert stats.cached_tokens == max(0, workload.depth - is_single), f"Bug: depth is not {workload}"
        assert prefill.prompt_tokens - workload.depth == workload.prompt_tokens, (
            f"Bug: prompt is not {workload}"
        )
        assert decode.generated_tokens == workload.generate_tokens, f"Bug: reply is not {workload}"

    def _prompt(self, new_tokens: int) -> list[int]:
        depth = self._workload.depth
        prompt = self._tokens[: depth + new_tokens]
        prompt[depth] = next(self._first_tokens)  # another one than the cache holds there
        return prompt

    def _stream(self, tokens: list[int], max_tokens: int) -> ReplyStream:
        return self._session.stream_tokens(
            tokens, max_tokens=max_tokens, sampling=self._sampling, ignore_end=True
        )


def measure(
    model: Model,
    session: Session,
    workload: Workload,
    repetitions: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Repetition]:
    """Run a workload once to warm up, then `repetitions` times.

    Args:
        model: The model.
        session: A fresh session of it.
        workload: What to read and write.
        repetitions: How often to measure.
        progress: Called with (rounds done, rounds in all); the warm-up is a round.

    Raises:
        ContextOverflowError: The workload does not fit in the session's context.
    """
    runner = WorkloadRunner(model, session, workload)
    measured = []
    runner.fill()
    for done in range(repetitions + 1):
        progress(done, repetitions + 1)
        repetition = runner.run()
        runner.check(repetition)
        measured.append(repetition)
    progress(repetitions + 1, repetitions + 1)
    return measured[1:]


def _exhaust(stream: ReplyStream) -> GenerationStats:
    for _ in stream:
        pass
    return stream.reply.stats
