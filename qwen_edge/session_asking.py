"""Other ways to ask than send() and stream(): for asyncio, for an answer of a type, for tools that are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

from qwen_edge import tool_loop, typed
from qwen_edge.async_session import AsyncReplyStream
from qwen_edge.openai_format import Turn, as_messages
from qwen_edge.reply_options import ExtractOptions, FormOptions, ReplyOptions, StreamOptions
from qwen_edge.reply_slot import ASYNC_PATIENCE_S
from qwen_edge.types import Reply

if TYPE_CHECKING:
    from qwen_edge.session import ReplyStream, Session

T = TypeVar("T")


class SessionAsking:
    """The part of Session that these methods are about; not made by itself."""

    @property
    def _session(self) -> Session:
        return cast("Session", self)

    async def asend(self, turn: Turn, **options: Unpack[ReplyOptions]) -> Reply:
        """send() for asyncio: `reply = await session.asend("Hi")`.

        Cancelling the task, or `asyncio.timeout`, stops the native call; the session stays usable, and what had been
        generated is in the history. See async_session.py.
        """
        return await self.astream(turn, **options).finish()

    def astream(self, turn: Turn, **options: Unpack[StreamOptions]) -> AsyncReplyStream:
        """stream() for asyncio: `async for chunk in session.astream("Hi")`. See asend().

        An earlier reply that was left or cancelled is waited for. One that is still being read is a ConfigError, at the
        first chunk.
        """
        return AsyncReplyStream(self._session._begin(as_messages(turn), options, patience_s=ASYNC_PATIENCE_S))

    def regenerate(self, **options: Unpack[ReplyOptions]) -> Reply:
        """Have the last message answered again; the reply takes the place of the one before.

        When it ends before its first token, by an error or otherwise, the old reply stays. With a fixed seed or greedily
        the reply is the same again.

        Args:
            **options: As in send().

        Raises:
            ConfigError: The conversation does not end with a reply; and what send() raises.
        """
        return self.regenerate_stream(**options).finish()

    def regenerate_stream(self, **options: Unpack[StreamOptions]) -> ReplyStream:
        """regenerate() piece by piece; that there is no reply yet is told at the first chunk."""
        return self._session._begin([], options, replaces_reply=True)

    async def aregenerate(self, **options: Unpack[ReplyOptions]) -> Reply:
        """regenerate() for asyncio. See asend()."""
        return await self.aregenerate_stream(**options).finish()

    def aregenerate_stream(self, **options: Unpack[StreamOptions]) -> AsyncReplyStream:
        """regenerate_stream() for asyncio. See astream()."""
        return AsyncReplyStream(
            self._session._begin([], options, replaces_reply=True, patience_s=ASYNC_PATIENCE_S)
        )

    @overload
    def extract(self, prompt: Turn, schema: type[T], **arguments: Unpack[ExtractOptions]) -> T: ...

    @overload
    def extract(self, prompt: Turn, schema: Any = None, **arguments: Unpack[FormOptions]) -> Any: ...

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
                `grammar` (Lark's notation, as llguidance reads it). `thinking`, `max_tokens` and so on as in send().
                `show_schema=False` keeps the schema out of the prompt: then the model knows it only by
                what it cannot write.

        Raises:
            OutputError: The answer was cut off before it was whole, or the type itself refuses it.
            ConfigError: No schema can be made of the type, or no constraint of the schema.
            MissingExtraError: llguidance is not installed.
        """
        return typed.extract(self._session, prompt, schema, **arguments)

    def extract_stream(
        self, prompt: Turn, schema: Any = None, **arguments: Unpack[FormOptions]
    ) -> typed.ExtractStream:
        """Say something and get the answer's JSON as far as it is written, again and again.

        Arguments and errors as in extract(). Iterate for partial values, then read `.result`.
        """
        return typed.extract_stream(self._session, prompt, schema, **arguments)

    def run(
        self, prompt: Turn, *, max_rounds: int = 5, on_error: tool_loop.OnError = "tell",
        **options: Unpack[ReplyOptions],
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
            **options: As in send(), for each reply.

        Raises:
            ToolError: After max_rounds the model asks for more; or whatever on_error="raise" raises. Up to there
                the conversation is in the history.
            ConfigError: A tool of the session is a schema without a function, or async.
        """
        return tool_loop.run(self._session, prompt, max_rounds=max_rounds, on_error=on_error, **options)

    async def arun(
        self, prompt: Turn, *, max_rounds: int = 5, on_error: tool_loop.OnError = "tell",
        **options: Unpack[ReplyOptions],
    ) -> Reply:  # fmt: skip
        """As run(), for an event loop: async functions are awaited, others run in threads."""
        return await tool_loop.arun(
            self._session, prompt, max_rounds=max_rounds, on_error=on_error, **options
        )
