"""Other ways to ask than send() and stream(): for asyncio, for an answer of a type, for tools that are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from qwen_edge import tool_loop, typed
from qwen_edge.async_session import AsyncReplyStream
from qwen_edge.config import SamplingConfig, ThinkingLike
from qwen_edge.openai_format import Turn
from qwen_edge.types import Reply

if TYPE_CHECKING:
    from qwen_edge.session import ReplyStream, Session

T = TypeVar("T")


class SessionAsking:
    """The part of Session that these methods are about; not made by itself."""

    stream: Callable[..., ReplyStream]

    @property
    def _session(self) -> Session:
        return cast("Session", self)

    async def asend(
        self,
        turn: Turn,
        *,
        thinking: ThinkingLike | None = None,
        max_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
        timeout_s: float | None = None,
        logprobs: int | None = None,
    ) -> Reply:
        """send() for asyncio: `reply = await session.asend("Hi")`.

        Cancelling the task, or `asyncio.timeout`, stops the native call; the session stays usable, and what had been
        generated is in the history. See async_session.py.
        """
        return await self.astream(
            turn,
            thinking=thinking,
            max_tokens=max_tokens,
            sampling=sampling,
            timeout_s=timeout_s,
            logprobs=logprobs,
        ).finish()

    def astream(
        self,
        turn: Turn,
        *,
        thinking: ThinkingLike | None = None,
        max_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
        timeout_s: float | None = None,
        logprobs: int | None = None,
    ) -> AsyncReplyStream:
        """stream() for asyncio: `async for chunk in session.astream("Hi")`. See asend()."""
        return AsyncReplyStream(
            self.stream(
                turn,
                thinking=thinking,
                max_tokens=max_tokens,
                sampling=sampling,
                timeout_s=timeout_s,
                logprobs=logprobs,
            )
        )

    @overload
    def extract(
        self, prompt: Turn, schema: type[T], *, thinking: ThinkingLike | None = None, max_tokens: int | None = None,
        sampling: SamplingConfig | None = None, show_schema: bool = True,
    ) -> T: ...  # fmt: skip

    @overload
    def extract(
        self, prompt: Turn, schema: Any = None, *, regex: str | None = None, choice: Sequence[str] | None = None,
        grammar: str | None = None, thinking: ThinkingLike | None = None, max_tokens: int | None = None,
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
        return typed.extract(self._session, prompt, schema, **arguments)

    def extract_stream(self, prompt: Turn, schema: Any = None, **arguments: Any) -> typed.ExtractStream:
        """Say something and get the answer's JSON as far as it is written, again and again.

        Arguments and errors as in extract(). Iterate for partial values, then read `.result`.
        """
        return typed.extract_stream(self._session, prompt, schema, **arguments)

    def run(
        self, prompt: Turn, *, max_rounds: int = 5, on_error: tool_loop.OnError = "tell",
        thinking: ThinkingLike | None = None, max_tokens: int | None = None, sampling: SamplingConfig | None = None,
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
        return tool_loop.run(self._session, prompt, max_rounds=max_rounds, on_error=on_error, **options)

    async def arun(
        self, prompt: Turn, *, max_rounds: int = 5, on_error: tool_loop.OnError = "tell",
        thinking: ThinkingLike | None = None, max_tokens: int | None = None, sampling: SamplingConfig | None = None,
    ) -> Reply:  # fmt: skip
        """As run(), for an event loop: async functions are awaited, others run in threads."""
        options = {"thinking": thinking, "max_tokens": max_tokens, "sampling": sampling}
        return await tool_loop.arun(
            self._session, prompt, max_rounds=max_rounds, on_error=on_error, **options
        )
