"""The conversation: history, template and tools around the decode loop of generation.py."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from qwen_edge.catalog import recommended_sampling
from qwen_edge.chat.template import ChatTemplate, ThinkingSupport, opens_thought
from qwen_edge.config import SamplingConfig, Switch
from qwen_edge.engines.base import Engine
from qwen_edge.errors import CancelledError, ClosedError, ConfigError, UnsupportedError
from qwen_edge.generation import GenerationRequest, Meter, Outcome, TokenCache, generate
from qwen_edge.overflow import OverflowPolicy
from qwen_edge.prefix_cache import PrefixCache
from qwen_edge.prefix_turn import SessionPrefixes
from qwen_edge.session_history import SessionHistory
from qwen_edge.types import Chunk, Message, Reply

Turn = str | Message | Sequence[Message]


class Session(SessionHistory):
    """One conversation with a model.

    Keeps the history and a KV cache. A turn renders the whole history with the model's chat template, keeps the
    cache up to the longest common prefix of tokens, and evaluates the rest. (Templates drop earlier thoughts, so a
    turn is not always a prefix of the next.)

    Not for two threads at once, except cancel().
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate,
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        on_close: Callable[[Session], None] = lambda session: None,
        overflow_policy: OverflowPolicy | None = None,
        prefix_store: PrefixCache | None = None,
        new_session: Callable[..., Session] | None = None,
    ) -> None:
        """Made by Model.session()."""
        self.tools = tuple(_as_openai_tool(tool) for tool in tools)
        if self.tools and not template.takes_tools:
            raise UnsupportedError("the model's chat template has no place for tools")
        self.messages: list[Message] = [Message("system", system)] if system else []
        self._engine = engine
        self._template = template
        self._cache: TokenCache | None = TokenCache(engine.new_context())
        self._on_close = on_close
        self._streaming = False
        self._overflow = overflow_policy or OverflowPolicy()
        self._prefixes = SessionPrefixes(engine, template, prefix_store)
        self._new_session = new_session

    def send(
        self,
        turn: Turn,
        *,
        thinking: Switch | None = None,
        max_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
    ) -> Reply:
        """Say something and wait for the whole answer. Arguments and errors as in stream()."""
        stream = self.stream(turn, thinking=thinking, max_tokens=max_tokens, sampling=sampling)
        for _ in stream:
            pass
        return stream.reply

    def stream(
        self,
        turn: Turn,
        *,
        thinking: Switch | None = None,
        max_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
    ) -> ReplyStream:
        """Say something and get the answer piece by piece.

        Args:
            turn: What the user says, or messages (tool results, say) to add to the history.
            thinking: "on" or "off"; None is the model's own default.
            max_tokens: Most tokens to generate, thinking included; None goes on to the end of the context.
            sampling: How tokens are chosen; None takes what Qwen recommends for the model and mode.

        Returns:
            An iterator of chunks. When it is exhausted, `.reply` has the whole answer with its stats.

        Raises:
            ContextOverflowError: History and turn do not fit; the history is as before. (At the first chunk.)
            UnsupportedError: thinking="on" for a model that does not think, or "off" for one that always does.
            ConfigError: max_tokens below 1, or another reply is still being streamed.
            ClosedError: After close().
        """
        if max_tokens is not None and max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1 (not {max_tokens})")
        enable_thinking = self._thinking_switch(thinking)
        sampling = sampling or self.recommended_sampling(thinking)
        self._idle_cache()
        outcome = Outcome()
        return ReplyStream(
            self._turn(_as_messages(turn), enable_thinking, max_tokens, sampling, outcome), outcome
        )

    def stream_tokens(
        self, tokens: Sequence[int], *, max_tokens: int, sampling: SamplingConfig, ignore_end: bool = False
    ) -> ReplyStream:
        """Continue raw tokens, past the template and the history: for measurements and for completion of text.

        Args:
            tokens: The whole prompt; what of it is in the KV cache already is not evaluated again.
            max_tokens: Most tokens to generate.
            sampling: How tokens are chosen.
            ignore_end: Go on past end tokens, so that exactly max_tokens are generated.

        Raises:
            ContextOverflowError: They do not fit. (At the first chunk.)
            ConfigError: No tokens, max_tokens below 1, or another reply is still being streamed.
            ClosedError: After close().
        """
        if not tokens or max_tokens < 1:
            raise ConfigError(f"at least one token in and one out (not {len(tokens)} and {max_tokens})")
        self._idle_cache()
        outcome = Outcome()
        request = GenerationRequest(
            tokens=tokens, sampling=sampling, max_tokens=max_tokens, ignore_end=ignore_end
        )
        return ReplyStream(self._continue(request, outcome), outcome)

    def _turn(
        self,
        added: list[Message],
        enable_thinking: bool | None,
        max_tokens: int | None,
        sampling: SamplingConfig,
        outcome: Outcome,
    ) -> Generator[Chunk, None, None]:
        """Add a turn to the history and generate its reply; without a token generated the turn is taken back."""
        meter = Meter()
        with self._generating() as cache:
            self.messages += added
            try:
                prompt = self._render(self.messages, enable_thinking)
                tokens = self._engine.tokenize(prompt)
                if self._overflow.wants_room(len(tokens), cache.context.n_ctx, max_tokens):
                    self._overflow.make_room(
                        self._engine, cache, self.messages, len(added),
                        functools.partial(self._render, enable_thinking=enable_thinking),
                        functools.partial(self._render, enable_thinking=self._without_thinking),
                    )  # fmt: skip
                    prompt = self._render(self.messages, enable_thinking)
                    tokens = self._engine.tokenize(prompt)
                request = GenerationRequest(
                    tokens=tokens,
                    sampling=sampling,
                    max_tokens=max_tokens,
                    starts_thinking=opens_thought(prompt),
                    tool_names=tuple(tool["function"]["name"] for tool in self.tools),
                    checkpoint=self._prefixes.begin_turn(
                        cache, tokens, self.messages, self.tools, enable_thinking, meter
                    ),
                )
                yield from generate(self._engine, cache, request, meter, outcome)
            except CancelledError:  # while the earlier conversation was summarised
                outcome.reply = Reply("", "", (), "cancelled", meter.stats())
            finally:
                if outcome.reply is not None and outcome.reply.stats.generated_tokens > 0:
                    self.messages.append(outcome.reply.message)
                else:
                    del self.messages[len(self.messages) - len(added) :]

    def _render(self, messages: Sequence[Message], enable_thinking: bool | None) -> str:
        return self._template.render(messages, tools=self.tools, enable_thinking=enable_thinking)

    @property
    def _without_thinking(self) -> bool | None:
        """Value of the template's enable_thinking for text of our own making; None where it has no such switch."""
        return False if self._template.thinking is ThinkingSupport.SWITCHED else None

    def _continue(self, request: GenerationRequest, outcome: Outcome) -> Generator[Chunk, None, None]:
        meter = Meter()
        with self._generating() as cache:
            yield from generate(self._engine, cache, request, meter, outcome)

    def _idle_cache(self) -> TokenCache:
        """Return the cache.

        Raises:
            ClosedError: After close().
            ConfigError: A reply is being streamed.
        """
        if self._cache is None:
            raise ClosedError("the session is closed")
        if self._streaming:
            raise ConfigError(
                "a reply of this session is still being streamed", hint="Finish it or close() it first."
            )
        return self._cache

    @contextlib.contextmanager
    def _generating(self) -> Iterator[TokenCache]:
        """Hold the session for one reply."""
        cache = self._idle_cache()
        self._streaming = True
        try:
            cache.context.clear_cancel()
            yield cache
        finally:
            self._streaming = False

    def recommended_sampling(self, thinking: Switch | None = None) -> SamplingConfig:
        """Return the sampling that the authors of this model recommend for a mode; stream()'s default."""
        thinks = self._template.thinking is not ThinkingSupport.NEVER and thinking != "off"
        info = self._engine.info
        return recommended_sampling(info.architecture, thinking=thinks, name=info.name)

    def cancel(self) -> None:
        """Stop the reply being streamed, within a token. Callable from any thread."""
        if self._cache is not None:
            self._cache.context.cancel()

    def close(self) -> None:
        """Free the KV cache, after the call in flight. Any number of times."""
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.context.close()
            self._on_close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _thinking_switch(self, thinking: Switch | None) -> bool | None:
        """Return the value of the template's enable_thinking, or None to leave it undefined."""
        if thinking not in (None, "on", "off"):
            raise ConfigError(f"thinking must be 'on' or 'off' (not {thinking!r})")
        support = self._template.thinking
        if support is ThinkingSupport.SWITCHED:
            return None if thinking is None else thinking == "on"
        if thinking == "on" and support is ThinkingSupport.NEVER:
            raise UnsupportedError(
                f"{self._engine.info.name or 'this model'} does not think: its template has no thinking mode",
                hint='Leave thinking out, or use a Qwen3 model. (thinking="off" is fine.)',
            )
        if thinking == "off" and support is ThinkingSupport.ALWAYS:
            raise UnsupportedError(
                f"{self._engine.info.name or 'this model'} always thinks: its template opens every answer with a thought",
                hint="Leave thinking out, or use a model with both modes.",
            )
        return None


class ReplyStream:
    """One answer being generated: iterate for chunks, then read `.reply`.

    Ctrl-C, close() and leaving the loop early all end the reply where it is: what was generated stays in the
    history with finish_reason "cancelled", and the session goes on. When it ends before the first token, by an
    error or otherwise, the turn is taken out of the history again.
    """

    def __init__(self, chunks: Generator[Chunk, None, None], outcome: Outcome) -> None:
        # The generator must not refer to this object: leaving a for loop ends it because nothing else holds it.
        self._chunks = chunks
        self._outcome = outcome

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        """End the reply here."""
        self._chunks.close()

    @property
    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            ConfigError: The stream has not ended yet.
        """
        if self._outcome.reply is None:
            raise ConfigError("the reply is not complete", hint="Read the stream to its end first.")
        return self._outcome.reply


def _as_messages(turn: Turn) -> list[Message]:
    if isinstance(turn, str):
        return [Message("user", turn)]
    if isinstance(turn, Message):
        return [turn]
    return list(turn)


def _as_openai_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool in OpenAI's form; the bare function object is accepted too."""
    if tool.get("type") == "function" and isinstance(tool.get("function"), Mapping):
        return dict(tool)
    if isinstance(tool.get("name"), str):
        return {"type": "function", "function": dict(tool)}
    raise ConfigError(
        f"a tool must be a JSON schema with a name (not {tool!r})",
        hint='Form: {"name": …, "description": …, "parameters": {"type": "object", "properties": {…}}}',
    )
