"""The conversation: history, KV cache, and the decode loop."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from qwen_edge import device
from qwen_edge.catalog import recommended_sampling
from qwen_edge.chat.parser import ReplyParser
from qwen_edge.chat.template import ChatTemplate, ThinkingSupport, opens_thought
from qwen_edge.config import SamplingConfig, Switch
from qwen_edge.engines.base import Context, Engine
from qwen_edge.errors import (
    CancelledError,
    ClosedError,
    ConfigError,
    ContextOverflowError,
    QwenEdgeError,
    UnsupportedError,
)
from qwen_edge.types import Chunk, FinishReason, GenerationStats, Message, Reply

Turn = str | Message | Sequence[Message]


class Session:
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
    ) -> None:
        """Made by Model.session()."""
        self.tools = tuple(_as_openai_tool(tool) for tool in tools)
        if self.tools and not template.takes_tools:
            raise UnsupportedError("the model's chat template has no place for tools")
        self.messages: list[Message] = [Message("system", system)] if system else []
        self._engine = engine
        self._template = template
        self._context: Context | None = engine.new_context()
        self._cached: list[int] = []  # mirrors the tokens in the KV cache
        self._on_close = on_close
        self._streaming = False

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
        if self._streaming:
            raise ConfigError(
                "a reply of this session is still being streamed", hint="Finish it or close() it first."
            )
        if self._context is None:
            raise ClosedError("the session is closed")
        if max_tokens is not None and max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1 (not {max_tokens})")
        enable_thinking = self._thinking_switch(thinking)
        if sampling is None:
            sampling = self.recommended_sampling(thinking)
        return ReplyStream(self, _as_messages(turn), enable_thinking, max_tokens, sampling)

    def recommended_sampling(self, thinking: Switch | None = None) -> SamplingConfig:
        """Return the sampling that Qwen recommends for this model and mode; stream()'s default."""
        thinks = self._template.thinking is not ThinkingSupport.NEVER and thinking != "off"
        return recommended_sampling(self._engine.info.architecture, thinking=thinks)

    def cancel(self) -> None:
        """Stop the reply being streamed, within a token. Callable from any thread."""
        if self._context is not None:
            self._context.cancel()

    def close(self) -> None:
        """Free the KV cache, after the call in flight. Any number of times."""
        context, self._context = self._context, None
        if context is not None:
            context.close()
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
    history with finish_reason "cancelled", and the session goes on. An error before the first token takes the turn
    out of the history again.
    """

    def __init__(
        self,
        session: Session,
        added: list[Message],
        enable_thinking: bool | None,
        max_tokens: int | None,
        sampling: SamplingConfig,
    ) -> None:
        self._session = session
        self._added = added
        self._enable_thinking = enable_thinking
        self._max_tokens = max_tokens
        self._sampling = sampling
        self._reply: Reply | None = None
        self._chunks: Generator[Chunk, None, None] = self._generate()

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        """End the reply here."""
        self._chunks.close()

    @property
    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            ConfigError: The stream is not exhausted yet.
        """
        if self._reply is None:
            raise ConfigError("the reply is not complete", hint="Read the stream to its end first.")
        return self._reply

    def _generate(self) -> Generator[Chunk, None, None]:
        session, engine = self._session, self._session._engine
        context = session._context
        if context is None:
            raise ClosedError("the session is closed")
        if session._streaming:
            raise ConfigError(
                "a reply of this session is still being streamed", hint="Finish it or close() it first."
            )
        session._streaming = True
        history_length = len(session.messages)
        session.messages += self._added
        meter = _Meter()
        parser: ReplyParser | None = None
        finish: FinishReason = "cancelled"
        try:
            context.clear_cancel()
            prompt = session._template.render(
                session.messages, tools=session.tools, enable_thinking=self._enable_thinking
            )
            tokens = engine.tokenize(prompt)
            self._prefill(context, tokens, meter)
            context.start_sampling(self._sampling)
            parser = ReplyParser(starts_thinking=opens_thought(prompt))
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            budget = context.n_ctx - context.n_past
            if self._max_tokens is not None:
                budget = min(budget, self._max_tokens)
            while True:
                token = context.sample()
                meter.count_token(thinking=parser.state == "thinking")
                if engine.is_end(token):
                    finish = "stop"
                    break
                yield from parser.feed(decoder.decode(engine.token_bytes(token)))
                if meter.generated_tokens >= budget:
                    finish = "length"
                    break
                context.append((token,))
                session._cached.append(token)
            yield from parser.feed(decoder.decode(b"", final=True))
            yield from parser.finish()
            if finish == "stop" and parser.tool_calls:
                finish = "tool_calls"
        except CancelledError:
            finish = "cancelled"
        except QwenEdgeError:
            if meter.generated_tokens == 0:
                del session.messages[history_length:]
            raise
        finally:
            session._streaming = False
            if parser is None or meter.generated_tokens == 0:
                del session.messages[history_length:]
            else:
                parser.finish()
                self._reply = Reply(parser.text, parser.thinking, parser.tool_calls, finish, meter.stats())
                session.messages.append(self._reply.message)
        if self._reply is None:
            self._reply = Reply("", "", (), "cancelled", meter.stats())

    def _prefill(self, context: Context, tokens: list[int], meter: _Meter) -> None:
        """Bring the cache from what it holds to `tokens`, evaluating only what differs."""
        if len(tokens) >= context.n_ctx:
            raise ContextOverflowError(
                f"the conversation is {len(tokens)} tokens long and the context holds {context.n_ctx}",
                hint=f"Load with n_ctx above {len(tokens)}, or begin a new session.",
            )
        session = self._session
        # The last token is evaluated again in any case: its logits are needed.
        common = _common_prefix(session._cached, tokens[:-1])
        context.rewind(common)
        common = context.n_past  # less, for a memory that cannot be cut
        del session._cached[common:]
        meter.start_prefill(prompt_tokens=len(tokens), cached_tokens=common)
        for start in range(common, len(tokens), context.n_batch):
            part = tokens[start : start + context.n_batch]
            context.append(part, wants_logits=start + len(part) == len(tokens))
            session._cached += part
        meter.end_prefill()


class _Meter:
    """Clock and counters of one reply."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._prefill_start = self._prefill_end = self._first = self._last = 0.0
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = self.thinking_tokens = 0

    def start_prefill(self, *, prompt_tokens: int, cached_tokens: int) -> None:
        self.prompt_tokens, self.cached_tokens = prompt_tokens, cached_tokens
        self._prefill_start = time.perf_counter()

    def end_prefill(self) -> None:
        self._prefill_end = time.perf_counter()

    def count_token(self, *, thinking: bool) -> None:
        self._last = time.perf_counter()
        if self.generated_tokens == 0:
            self._first = self._last
        self.generated_tokens += 1
        self.thinking_tokens += thinking

    def stats(self) -> GenerationStats:
        return GenerationStats(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=self.generated_tokens,
            thinking_tokens=self.thinking_tokens,
            ttft_s=max(0.0, self._first - self._start),
            prefill_s=max(0.0, self._prefill_end - self._prefill_start),
            decode_s=self._last - self._first,
            peak_memory_bytes=device.peak_memory_bytes(),
        )


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading items are equal."""
    for i, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return i
    return min(len(a), len(b))


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


def tool_result(content: str) -> Message:
    """Return the message that gives a tool's result to the model."""
    return Message("tool", content)
