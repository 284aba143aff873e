"""The decode loop: from prompt tokens to chunks, with its KV cache and its clock. There is one, and this is it."""

from __future__ import annotations

import codecs
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from qwen_edge import device
from qwen_edge.chat.constraint import Guide
from qwen_edge.chat.parser import ReplyParser
from qwen_edge.config import SamplingConfig
from qwen_edge.engines.base import Context, Engine
from qwen_edge.errors import CancelledError, ContextOverflowError
from qwen_edge.types import Chunk, FinishReason, GenerationStats, Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate from.

    Attributes:
        tokens: The whole prompt; what of it is in the cache already is not evaluated again.
        sampling: How tokens are chosen.
        max_tokens: Most tokens to generate; None goes on to the end of the context.
        starts_thinking: The prompt ends inside a thought.
        tool_names: Tools on offer, for calls that come without their tags.
        ignore_end: Go on past end tokens, for measuring a fixed number of steps.
        guide: Which tokens are allowed, None for all.
    """

    tokens: Sequence[int]
    sampling: SamplingConfig
    max_tokens: int | None = None
    starts_thinking: bool = False
    tool_names: tuple[str, ...] = ()
    ignore_end: bool = False
    guide: Guide | None = None


class TokenCache:
    """An engine's context and the list of tokens in it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._tokens: list[int] = []

    def prefill(self, tokens: Sequence[int], meter: Meter) -> None:
        """Bring the cache to `tokens`, evaluating only what follows the longest common prefix.

        Raises:
            ContextOverflowError: They leave no room for a reply. The cache is as before.
            CancelledError: Context.cancel() was called; what was evaluated stays.
        """
        context = self.context
        if len(tokens) >= context.n_ctx:
            raise ContextOverflowError(
                f"the conversation is {len(tokens)} tokens long and the context holds {context.n_ctx}",
                hint=f"Load with n_ctx above {len(tokens)}, or begin a new session.",
            )
        # The last token is evaluated again in any case: its logits are needed.
        context.rewind(min(_common_prefix(self._tokens, tokens[:-1]), context.n_past))
        cached = context.n_past  # 0, for a memory that cannot be cut
        del self._tokens[cached:]
        meter.start_prefill(prompt_tokens=len(tokens), cached_tokens=cached)
        for start in range(cached, len(tokens), context.n_batch):
            part = tokens[start : start + context.n_batch]
            context.append(part, wants_logits=start + len(part) == len(tokens))
            self._tokens += part
        meter.end_prefill()

    def append(self, token: int) -> None:
        """Evaluate one token behind the others."""
        self.context.append((token,))
        self._tokens.append(token)


class Meter:
    """Clock and counters of one reply; starts when it is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._prefill_start = self._prefill_end = self._first = self._last = 0.0
        self._prompt_tokens = self._cached_tokens = self._thinking_tokens = 0
        self.generated_tokens = 0

    def start_prefill(self, *, prompt_tokens: int, cached_tokens: int) -> None:
        """Note what is about to be evaluated."""
        self._prompt_tokens, self._cached_tokens = prompt_tokens, cached_tokens
        self._prefill_start = time.perf_counter()

    def end_prefill(self) -> None:
        """Note that the prompt is in the cache."""
        self._prefill_end = time.perf_counter()

    def count_token(self, *, thinking: bool) -> None:
        """Note a sampled token."""
        self._last = time.perf_counter()
        if self.generated_tokens == 0:
            self._first = self._last
        self.generated_tokens += 1
        self._thinking_tokens += thinking

    def stats(self) -> GenerationStats:
        """Return the figures so far."""
        return GenerationStats(
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self.generated_tokens,
            thinking_tokens=self._thinking_tokens,
            ttft_s=max(0.0, self._first - self._start),
            prefill_s=max(0.0, self._prefill_end - self._prefill_start),
            decode_s=self._last - self._first,
            peak_memory_bytes=device.peak_memory_bytes(),
        )


class Outcome:
    """Where generate() leaves the reply; None until it has ended, in whatever way."""

    reply: Reply | None = None


def generate(
    engine: Engine, cache: TokenCache, request: GenerationRequest, meter: Meter, outcome: Outcome
) -> Generator[Chunk, None, None]:
    """Yield the reply piece by piece and leave it whole in `outcome`, also when it is cut short.

    Args:
        engine: For token bytes and end tokens.
        cache: Holds the prompt and the reply afterwards, but for the last token sampled.
        request: Prompt and limits.
        meter: Running since the turn began.
        outcome: Receives the reply.

    Raises:
        ContextOverflowError: The prompt does not fit.
        QwenEdgeError: Whatever the engine raises, except that a cancel() ends the reply without an error.
    """
    context = cache.context
    parser = ReplyParser(starts_thinking=request.starts_thinking, tool_names=request.tool_names)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    finish: FinishReason = "cancelled"
    try:
        cache.prefill(request.tokens, meter)
        context.start_sampling(request.sampling)
        budget = context.n_ctx - context.n_past
        if request.max_tokens is not None:
            budget = min(budget, request.max_tokens)
        while True:
            constraint = None if request.guide is None else request.guide.constraint_for(parser)
            token = context.sample(constraint)
            if constraint is not None:
                constraint.accept(token)
            meter.count_token(thinking=parser.state == "thinking")
            if engine.is_end(token) and not request.ignore_end:
                finish = "stop"
                break
            yield from parser.feed(decoder.decode(engine.token_bytes(token)))
            if meter.generated_tokens >= budget:
                finish = "length"
                break
            cache.append(token)
        yield from parser.feed(decoder.decode(b"", final=True))
        yield from parser.finish()
        if finish == "stop" and parser.tool_calls:
            finish = "tool_calls"
    except CancelledError:
        pass  # asked for: the reply ends here, and says so
    finally:
        parser.finish()
        outcome.reply = Reply(parser.text, parser.thinking, parser.tool_calls, finish, meter.stats())


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading items are equal."""
    for i, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return i
    return min(len(a), len(b))
