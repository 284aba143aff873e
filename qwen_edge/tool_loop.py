"""The loop of a model with tools: it asks for calls, they are made, it reads the results, until it answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, Unpack

from qwen_edge.chat.tools import ToolFunction, error_text, result_text
from qwen_edge.errors import ConfigError, ToolError
from qwen_edge.reply_options import ReplyOptions
from qwen_edge.types import Message, Reply, ToolCall

if TYPE_CHECKING:
    from qwen_edge.openai_format import Turn
    from qwen_edge.session import Session

OnError = Literal["tell", "raise"]


def run(
    session: Session, turn: Turn, *, max_rounds: int, on_error: OnError, **options: Unpack[ReplyOptions]
) -> Reply:
    """Send a turn, make the calls that the model asks for, send the results, and so on; return the final reply.

    See Session.run, whose arguments these are.
    """
    _check(session, max_rounds, on_error)
    for name, tool in session.functions.items():
        if tool.is_async:
            raise ConfigError(f"the tool {name!r} is an async function", hint="Use: await session.arun(...)")
    reply = session.send(turn, **options)
    for _ in range(max_rounds):
        if not _asks_for_calls(reply):
            return reply
        reply = session.send([answer(session, call, on_error) for call in reply.tool_calls], **options)
    return _checked_last(reply, max_rounds)


async def arun(
    session: Session, turn: Turn, *, max_rounds: int, on_error: OnError, **options: Unpack[ReplyOptions]
) -> Reply:
    """As run(), without blocking the event loop; async functions are awaited, the calls of one turn together.

    When the task is cancelled, so is the reply being generated.
    """
    _check(session, max_rounds, on_error)
    reply = await session.asend(turn, **options)
    for _ in range(max_rounds):
        if not _asks_for_calls(reply):
            return reply
        answers = await asyncio.gather(*(_answer_async(session, call, on_error) for call in reply.tool_calls))
        reply = await session.asend(list(answers), **options)
    return _checked_last(reply, max_rounds)


def _check(session: Session, max_rounds: int, on_error: str) -> None:
    if max_rounds < 1:
        raise ConfigError(f"max_rounds must be at least 1 (not {max_rounds})")
    if on_error not in ("tell", "raise"):
        raise ConfigError(f"on_error must be 'tell' or 'raise' (not {on_error!r})")
    for tool in session.tools:
        name = tool["function"]["name"]
        if name not in session.functions:
            raise ConfigError(
                f"the tool {name!r} is a schema without a function, so it cannot be called",
                hint="Give the function itself to session(tools=[...]), or make the calls yourself with send().",
            )


def _asks_for_calls(reply: Reply) -> bool:
    return bool(reply.tool_calls) and reply.finish_reason != "cancelled"


def _checked_last(reply: Reply, max_rounds: int) -> Reply:
    """Return the reply after the last round.

    Raises:
        ToolError: It asks for calls again.
    """
    if _asks_for_calls(reply):
        names = ", ".join(call.name for call in reply.tool_calls)
        raise ToolError(
            f"after {max_rounds} rounds of tool calls the model asks for more: {names}",
            hint="Allow more max_rounds, or look at session.messages for what it repeats.",
        )
    return reply


def _prepared(session: Session, call: ToolCall) -> tuple[ToolFunction, dict[str, Any]]:
    """Return the function of a call and its arguments.

    Raises:
        ToolError: There is no such tool, or the arguments do not fit.
    """
    tool = session.functions.get(call.name)
    if tool is None:
        raise ToolError(
            f"there is no tool {call.name!r}; there are: {', '.join(session.functions) or 'none'}"
        )
    return tool, tool.arguments(call)


def answer(session: Session, call: ToolCall, on_error: OnError = "tell") -> Message:
    """Make one call and return its result as the message that the model reads.

    Raises:
        ToolError: It cannot be made, or failed, and on_error is "raise".
    """
    try:
        tool, arguments = _prepared(session, call)
        return Message("tool", result_text(_called(tool, arguments)))
    except ToolError as error:
        return _told(error, on_error)


async def _answer_async(session: Session, call: ToolCall, on_error: OnError) -> Message:
    try:
        tool, arguments = _prepared(session, call)
        if tool.is_async:
            try:
                return Message("tool", result_text(await tool.function(**arguments)))
            except Exception as error:
                raise _failure(tool, error) from error
        return Message("tool", result_text(await asyncio.to_thread(_called, tool, arguments)))
    except ToolError as error:
        return _told(error, on_error)


def _called(tool: ToolFunction, arguments: dict[str, Any]) -> Any:
    try:
        return tool.function(**arguments)
    except Exception as error:
        raise _failure(tool, error) from error


def _failure(tool: ToolFunction, error: Exception) -> ToolError:
    return ToolError(f"{tool.schema['name']} failed: {type(error).__name__}: {error}")


def _told(error: ToolError, on_error: OnError) -> Message:
    if on_error == "raise":
        raise error
    return Message("tool", error_text(error.message))
