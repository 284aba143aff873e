"""The conversation: history, template and tools around the decode loop of generation.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from qwen_edge import tool_loop, typed
from qwen_edge.catalog import recommended_sampling
from qwen_edge.chat import constraint
from qwen_edge.chat.template import ChatTemplate, ThinkingSupport, opens_thought
from qwen_edge.chat.tools import ToolLike, split_tools
from qwen_edge.config import SamplingConfig, Switch
from qwen_edge.engines.base import Engine
from qwen_edge.errors import ClosedError, ConfigError, UnsupportedError
from qwen_edge.generation import GenerationRequest, Meter, Outcome, TokenCache, generate
from qwen_edge.types import Chunk, Message, Reply

Turn = str | Message | Sequence[Message]
T = TypeVar("T")


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
        tools: Sequence[ToolLike] = (),
        on_close: Callable[[Session], None] = lambda session: None,
    ) -> None:
        """Made by Model.session()."""
        schemas, self.functions = split_tools(tools)
        self.tools = tuple(_as_openai_tool(tool) for tool in schemas)
        self._call_constraint: constraint.Constraint | None = None
        if self.tools and not template.takes_tools:
            raise UnsupportedError("the model's chat template has no place for tools")
        self.messages: list[Message] = [Message("system", system)] if system else []
        self._engine = engine
        self._template = template
        self._cache: TokenCache | None = TokenCache(engine.new_context())
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
        guide: constraint.Guide | None = None,
    ) -> ReplyStream:
        """Say something and get the answer piece by piece.

        Args:
            turn: What the user says, or messages (tool results, say) to add to the history.
            thinking: "on" or "off"; None is the model's own default.
            max_tokens: Most tokens to generate, thinking included; None goes on to the end of the context.
            sampling: How tokens are chosen; None takes what Qwen recommends for the model and mode.
            guide: Which tokens are allowed; None holds tool calls to the tools on offer and leaves the rest free.

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
            self._turn(_as_messages(turn), enable_thinking, max_tokens, sampling, outcome, guide), outcome
        )

    @overload
    def extract(
        self, prompt: Turn, schema: type[T], *, thinking: Switch | None = None, max_tokens: int | None = None,
        sampling: SamplingConfig | None = None, show_schema: bool = True,
    ) -> T: ...  # fmt: skip

    @overload
    def extract(
        self, prompt: Turn, schema: Any = None, *, regex: str | None = None, choice: Sequence[str] | None = None,
        grammar: str | None = None, thinking: Switch | None = None, max_tokens: int | None = None,
        sampling: SamplingConfig | None = None, show_schema: bool = True,
    ) -> Any: ...  # fmt: skip

    def extract(self, prompt: Turn, schema: Any = None, **arguments: Any) -> Any:
        """Say something and get the answer as an instance of a type.

        The model thinks first where it does; from the answer's first token on, only what fits is possible.

        ::

            @dataclass
            class Person:
                name: str
                age: int

            session.extract("Max is 30 years old.", Person)              # Person(name='Max', age=30)
            session.extract("Is that old?", choice=["yes", "no"])        # 'no'

        Args:
            prompt: What the user says, as in stream().
            schema: A dataclass, TypedDict, pydantic model, Enum, Literal, list[...] and so on, or a JSON schema.
            **arguments: In place of a schema one of `regex` (a regular expression), `choice` (a list of texts),
                `grammar` (Lark's notation, as llguidance reads it). `thinking`, `max_tokens` and `sampling` as in
                stream(). `show_schema=False` keeps the schema out of the prompt: then the model knows it only by
                what it cannot write.

        Raises:
            OutputError: The answer was cut off before it was whole, or the type itself refuses it.
            ConfigError: No schema can be made of the type, or no constraint of the schema.
            MissingExtraError: llguidance is not installed.
        """
        return typed.extract(self, prompt, schema, **arguments)

    def extract_stream(self, prompt: Turn, schema: Any = None, **arguments: Any) -> typed.ExtractStream:
        """Say something and get the answer's JSON as far as it is written, again and again.

        Arguments and errors as in extract(). Iterate for partial values, then read `.result`.
        """
        return typed.extract_stream(self, prompt, schema, **arguments)

    def run(
        self, prompt: Turn, *, max_rounds: int = 5, on_error: tool_loop.OnError = "tell",
        thinking: Switch | None = None, max_tokens: int | None = None, sampling: SamplingConfig | None = None,
    ) -> Reply:  # fmt: skip
        """Say something, make the calls that the model asks for, and return its final answer.

        ::

            def get_weather(city: str) -> dict:
                "Current weather of a city."
                return {"temp_c": 21}

            with model.session(tools=[get_weather]) as session:
                print(session.run("What is the weather in Vienna?").text)

        Args:
            prompt: What the user says, as in stream().
            max_rounds: Most times that calls are made and their results sent.
            on_error: What becomes of an unknown tool, wrong arguments and an exception in a function: "tell" the model,
                which may try again, or "raise" a ToolError.
            thinking: As in stream(), for each reply; so are max_tokens and sampling.
            max_tokens: See thinking.
            sampling: See thinking.

        Raises:
            ToolError: After max_rounds the model asks for more; or whatever on_error="raise" raises. Up to there
                the conversation is in the history.
            ConfigError: A tool of the session is a schema without a function, or async.
        """
        options = {"thinking": thinking, "max_tokens": max_tokens, "sampling": sampling}
        return tool_loop.run(self, prompt, max_rounds=max_rounds, on_error=on_error, **options)

    async def arun(
        self, prompt: Turn, *, max_rounds: int = 5, on_error: tool_loop.OnError = "tell",
        thinking: Switch | None = None, max_tokens: int | None = None, sampling: SamplingConfig | None = None,
    ) -> Reply:  # fmt: skip
        """As run(), for an event loop: async functions are awaited, others run in threads."""
        options = {"thinking": thinking, "max_tokens": max_tokens, "sampling": sampling}
        return await tool_loop.arun(self, prompt, max_rounds=max_rounds, on_error=on_error, **options)

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
        guide: constraint.Guide | None,
    ) -> Generator[Chunk, None, None]:
        """Add a turn to the history and generate its reply; without a token generated the turn is taken back."""
        meter = Meter()
        with self._generating() as cache:
            history_length = len(self.messages)
            self.messages += added
            try:
                prompt = self._template.render(
                    self.messages, tools=self.tools, enable_thinking=enable_thinking
                )
                request = GenerationRequest(
                    tokens=self._engine.tokenize(prompt),
                    sampling=sampling,
                    max_tokens=max_tokens,
                    starts_thinking=opens_thought(prompt),
                    # With a guide the answer is what was asked for, even where it looks like a bare call.
                    tool_names=() if guide else tuple(tool["function"]["name"] for tool in self.tools),
                    guide=guide or self._tool_guide(),
                )
                yield from generate(self._engine, cache, request, meter, outcome)
            finally:
                if outcome.reply is not None and outcome.reply.stats.generated_tokens > 0:
                    self.messages.append(outcome.reply.message)
                else:
                    del self.messages[history_length:]

    def _tool_guide(self) -> constraint.Guide | None:
        """Return what holds calls to the tools on offer; without llguidance they are checked when they are whole."""
        if not self.tools or not constraint.is_available():
            return None

        def new_call() -> constraint.Constraint:
            if self._call_constraint is None:
                vocabulary = constraint.vocabulary_of(self._engine)
                grammar = constraint.call_grammar(self.tools, vocabulary)
                self._call_constraint = constraint.Constraint(vocabulary, grammar)
            return self._call_constraint.copy()

        return constraint.ToolCallGuide(new_call)

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

    def may_think(self, thinking: Switch | None) -> bool:
        """Return whether a reply in a mode may begin with a thought."""
        return self._template.thinking is not ThinkingSupport.NEVER and thinking != "off"

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
