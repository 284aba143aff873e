"""The decode loop: from prompt tokens to chunks, with its KV cache and its clock. There is one, and this is it."""

from __future__ import annotations

import codecs
import inspect
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge import device
from qwen_edge.cancellation import Cancellation
from qwen_edge.chat.constraint import Guide
from qwen_edge.chat.parser import ReplyParser
from qwen_edge.chat.thinking import ReplyGuard
from qwen_edge.config import SamplingConfig, ThinkingConfig
from qwen_edge.engines.base import Context, Engine
from qwen_edge.errors import CancelledError, ContextOverflowError
from qwen_edge.logits import check_are_numbers
from qwen_edge.logprobs import token_logprob
from qwen_edge.speculation import Speculation
from qwen_edge.types import (
    Chunk,
    FinishReason,
    GenerationStats,
    PrefixCacheUse,
    Reply,
    ThoughtCut,
    TokenLogprob,
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place in the prompt where the KV cache holds a prefix worth keeping.

    Attributes:
        n_tokens: Length of the prefix.
        reached: Called once when the cache holds exactly this, with the seconds that the whole prefix takes; where part
            of it was there before, estimated from the rest.
    """

    n_tokens: int
    reached: Callable[[float], None]


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
        logprobs: Most likely alternatives to tell with each token; None tells no log-probabilities.
        thinking: When a thought is closed and a loop ended; None lets the model go on, as raw completion needs it.
        checkpoint: Where prefill pauses once.
        guide: Which tokens are allowed, None for all.
    """

    tokens: Sequence[int]
    sampling: SamplingConfig
    max_tokens: int | None = None
    starts_thinking: bool = False
    tool_names: tuple[str, ...] = ()
    ignore_end: bool = False
    logprobs: int | None = None
    thinking: ThinkingConfig | None = None
    checkpoint: Checkpoint | None = None
    guide: Guide | None = None


class TokenCache:
    """An engine's context and the list of tokens in it."""

    def __init__(self, context: Context, speculation: Speculation | None = None) -> None:
        """Begin with an empty cache.

        Args:
            context: The cache.
            speculation: Evaluates tokens of replies ahead; None evaluates one after the other.
        """
        self.context = context
        self.speculation = speculation
        self._tokens: list[int] = []

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the KV cache."""
        return tuple(self._tokens[: self.context.n_past])

    def common_prefix(self, tokens: Sequence[int]) -> int:
        """Return how many of the leading tokens are in the KV cache already."""
        return min(_common_prefix(self._tokens, tokens), self.context.n_past)

    def save(self) -> tuple[tuple[int, ...], NDArray[np.uint8]]:
        """Return the tokens in the KV cache, and the cache as bytes.

        Raises:
            UnsupportedError: The engine cannot save it.
        """
        self.context.rewind(len(self.tokens))
        self._tokens[:] = self.tokens  # Ctrl-C can strike between an evaluation and its record
        return self.tokens, self.context.save_state()

    def load(self, tokens: Sequence[int], state: Any) -> None:
        """Put a saved KV cache in place of this one.

        Raises:
            FormatError: It does not fit. This cache is empty.
        """
        self._tokens = []
        self.context.load_state(state, len(tokens))
        self._tokens = list(tokens)

    def prefill(self, tokens: Sequence[int], meter: Meter, checkpoint: Checkpoint | None = None) -> None:
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
        pause = checkpoint.n_tokens if checkpoint is not None else 0
        kept = min(_common_prefix(self._tokens, tokens), context.n_past)
        context.rewind(_without_lone_tokens(kept, pause, len(tokens)))
        cached = context.n_past  # 0, for a memory that cannot be cut
        del self._tokens[cached:]
        meter.start_prefill(prompt_tokens=len(tokens), cached_tokens=cached)
        start = cached
        while start < len(tokens):
            goal = pause if start < pause else len(tokens)
            end = min(start + context.n_batch, goal)
            if goal - end == 1 and end - start > 2:
                end -= 1  # see _without_lone_tokens()
            part = tokens[start:end]
            context.append(part, wants_logits=end == len(tokens))
            self._tokens += part
            start = end
            if checkpoint is not None and start == pause:
                checkpoint.reached(meter.prefill_seconds() * pause / (pause - cached))
        meter.end_prefill()

    def append(self, tokens: Sequence[int], most_ahead: int) -> None:
        """Evaluate tokens of the reply behind the others; none is fine.

        Args:
            tokens: The token drawn last, those that close a thought, both or none.
            most_ahead: Tokens of the reply behind the next one.
        """
        if self.speculation is not None:
            if len(tokens) == 1:
                self.speculation.step(tokens[0], most_ahead)
                self._tokens += tokens
                return
            if tokens:
                self.speculation.settle()
                self.speculation.extend(tokens)
        for start in range(0, len(tokens), self.context.n_batch):
            part = tokens[start : start + self.context.n_batch]
            self.context.append(part, wants_logits=start + len(part) == len(tokens))
            self._tokens += part

    def cancel(self) -> None:
        """End the evaluation in flight, and later ones. Callable from any thread."""
        self.context.cancel()
        if self.speculation is not None:
            self.speculation.cancel()

    def clear_cancel(self) -> None:
        """Forget an earlier cancel()."""
        self.context.clear_cancel()
        if self.speculation is not None:
            self.speculation.clear_cancel()

    def close(self) -> None:
        """Free the cache, after the call in flight. Any number of times."""
        self.context.close()
        if self.speculation is not None:
            self.speculation.close()


class Meter:
    """Clock and counters of one reply; starts when it is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._prefill_start = self._prefill_end = self._first = self._last = 0.0
        self._prompt_tokens = self._cached_tokens = self._thinking_tokens = 0
        self.generated_tokens = 0
        self.closing_tokens = 0
        self._thought_cut: ThoughtCut | None = None
        self.prefix_cache: PrefixCacheUse = "off"
        self.prefix_saved_s = 0.0
        self.speculation: Speculation | None = None

    def start_prefill(self, *, prompt_tokens: int, cached_tokens: int) -> None:
        """Note what is about to be evaluated."""
        self._prompt_tokens, self._cached_tokens = prompt_tokens, cached_tokens
        self._prefill_start = time.perf_counter()

    def prefill_seconds(self) -> float:
        """Return the seconds since the evaluation began."""
        return time.perf_counter() - self._prefill_start

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

    def count_closing(self, count: int, cut: ThoughtCut | None) -> None:
        """Note the tokens that close a thought, and why it is closed."""
        self.closing_tokens += count
        self._thought_cut = cut

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
            closing_tokens=self.closing_tokens,
            thought_cut=self._thought_cut,
            prefix_cache=self.prefix_cache,
            prefix_saved_s=self.prefix_saved_s,
            proposed_tokens=self.speculation.proposed_tokens if self.speculation else 0,
            accepted_tokens=self.speculation.accepted_tokens if self.speculation else 0,
            speculation=self.speculation.use if self.speculation else "off",
        )


class Outcome:
    """Where generate() leaves the reply, and how to end it.

    Attributes:
        reply: None until it has ended, in whatever way.
        logprobs: Of the tokens so far, where the request asks for them.
        cancellation: Ends the reply from outside.
        lock: Held by the thread that is inside the generator.
    """

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.logprobs: list[TokenLogprob] = []
        self.cancellation = Cancellation()
        self.lock = threading.RLock()
        self._chunks: weakref.ref[Generator[Chunk, None, None]] | None = None

    def watch(self, chunks: Generator[Chunk, None, None]) -> None:
        """Note the generator, weakly: it ends when its reader lets go of it."""
        self._chunks = weakref.ref(chunks)

    def end(self) -> bool:
        """Close the generator, behind the thread that may be inside; False when that is the calling one."""
        with self.lock:
            chunks = self._chunks() if self._chunks is not None else None
            if chunks is not None:
                if inspect.getgeneratorstate(chunks) == inspect.GEN_RUNNING:
                    return False
                chunks.close()
        return True


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
        NativeError: The model computes values that are no numbers.
        QwenEdgeError: Whatever the engine raises, except that a cancel() ends the reply without an error.
    """
    context = cache.context
    parser = ReplyParser(starts_thinking=request.starts_thinking, tool_names=request.tool_names)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    finish: FinishReason = "cancelled"
    try:
        cache.prefill(request.tokens, meter, request.checkpoint)
        context.start_sampling(request.sampling)
        check_are_numbers(context.logits(), engine.info.path)
        budget = context.n_ctx - context.n_past
        if request.max_tokens is not None:
            budget = min(budget, request.max_tokens)
        guard = ReplyGuard(request.thinking, limit=budget, tokenize=engine.tokenize)
        guide = request.guide
        if (speculation := cache.speculation) is not None:
            meter.speculation = speculation
            speculation.begin(request.tokens)

        def is_thinking() -> bool:
            return parser.state == "thinking" and not (guide is not None and guide.is_answering)

        unread: tuple[int, ...] = ()  # the token sampled last, not evaluated yet
        while True:
            closing = guard.closing(thinking=is_thinking())
            meter.count_closing(len(closing), guard.cut)
            yield from parser.feed(decoder.decode(b"".join(map(engine.token_bytes, closing))))
            cache.append((*unread, *closing), budget - meter.generated_tokens - meter.closing_tokens - 1)
            # Before sampling, which may change them.
            logits = context.logits() if request.logprobs is not None else None
            constraint = None if guide is None else guide.constraint_for(parser)
            token, unread = context.sample(constraint), ()
            if constraint is not None:
                constraint.accept(token)
            was_thinking = is_thinking()
            meter.count_token(thinking=was_thinking)
            is_full = meter.generated_tokens + meter.closing_tokens >= budget
            if engine.is_end(token) and not request.ignore_end:
                # What a constraint lets end is whole.
                is_free = constraint is None or was_thinking
                if (
                    is_free
                    and not is_full
                    and guard.goes_on(thinking=was_thinking, answered=parser.has_answer)
                ):
                    context.forbid((token,))  # for the next draw; a closed thought has other logits anyhow
                    continue
                finish = "stop"
            if logits is not None and request.logprobs is not None:
                outcome.logprobs.append(token_logprob(logits, token, request.logprobs, engine.token_bytes))
            if finish == "stop":
                break
            yield from parser.feed(decoder.decode(engine.token_bytes(token)))
            if guard.gives_up(token, was_thinking=was_thinking, thinking=is_thinking()):
                finish = "loop"
                break
            if is_full:
                finish = "length"
                break
            unread = (token,)
        yield from parser.feed(decoder.decode(b"", final=True))
        yield from parser.finish()
        if finish == "stop":
            finish = guard.finish_reason(
                has_calls=bool(parser.tool_calls), answered=parser.has_answer, is_full=is_full
            )
    except CancelledError:
        pass  # asked for: the reply ends here, and says so
    finally:
        if cache.speculation is not None:
            cache.speculation.end()
        parser.finish()
        outcome.reply = Reply(
            parser.text,
            parser.thinking,
            parser.tool_calls,
            finish,
            meter.stats(),
            tuple(outcome.logprobs) if request.logprobs is not None else None,
        )


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading items are equal."""
    for i, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return i
    return min(len(a), len(b))


def _without_lone_tokens(kept: int, pause: int, n_tokens: int) -> int:
    """Return how much of the cache to keep, so that what is evaluated, up to a pause and in all, is two tokens or more.

    A call of one token takes other kernels, and differs in the last digits: what a prompt is answered would depend on
    what happened to be in the cache. Calls of two tokens and more of a sequence agree to the bit on most types.

    Args:
        kept: Tokens of the cache that could be kept.
        pause: Where evaluation pauses; 0 for nowhere.
        n_tokens: Of the whole prompt, whose last token is evaluated in any case: its logits are needed.
    """
    kept = min(kept, n_tokens - 2)
    if pause - kept == 1:
        kept -= 1
    return max(0, kept)
