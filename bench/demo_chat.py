"""The demo's conversation with the embedded model: a question, a question with thinking, a tool call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from qwen_edge.bench.local_tools import ADD_TOOL, WEATHER_TOOL, run_call
from qwen_edge.config import SamplingConfig, Switch
from qwen_edge.model import Model
from qwen_edge.session import ReplyStream, Session
from qwen_edge.types import Message, Reply

SEED = 7
MAX_TOKENS = 256

# From examples/tiny-qwen3/eval: what a model of 5.8 M weights was trained for.
QUESTION = "What is the capital of Greece?"
# The soft switch makes sure: with thinking allowed, the model skips the thought now and then.
THINKING_QUESTION = "What is 32 + 34? /think"
TOOL_QUESTION = "How is the weather in Vienna?"
_TOOLS = (WEATHER_TOOL, ADD_TOOL)


class Narrator(Protocol):
    """Where a person reads along."""

    def say(self, text: str) -> None:
        """Show a line."""

    def show(self, stream: ReplyStream) -> Reply:
        """Show a reply while it comes, thinking apart from the answer, and return it."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and what came of it.

    Attributes:
        question: What the user said.
        expected: What a right answer contains.
        replies: The model's replies in order; two when a tool was called.
        tool_results: What the called functions returned, as JSON.
    """

    question: str
    expected: str
    replies: tuple[Reply, ...]
    tool_results: tuple[str, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether the last reply contains what is expected."""
        return self.expected in self.replies[-1].text

    def to_dict(self) -> dict[str, Any]:
        """Return the exchange, JSON-ready."""
        return {
            "question": self.question,
            "expected": self.expected,
            "right": self.is_right,
            "replies": [reply.to_dict() for reply in self.replies],
            "tool_results": list(self.tool_results),
        }


def converse(model: Model, narrator: Narrator) -> list[Exchange]:
    """Ask without thinking, with thinking, and for a tool; sampling as Qwen recommends, with a fixed seed."""
    exchanges = []
    with model.session() as session:
        narrator.say(f"You:   {QUESTION}   (thinking off)")
        exchanges.append(Exchange(QUESTION, "Athens", (_ask(session, QUESTION, "off", narrator.show),)))
    with model.session() as session:
        narrator.say(f"You:   {THINKING_QUESTION}   (thinking on)")
        reply = _ask(session, THINKING_QUESTION, "on", narrator.show)
        exchanges.append(Exchange(THINKING_QUESTION, "66", (reply,)))
    with model.session(tools=_TOOLS) as session:
        exchanges.append(_use_tool(session, narrator))
    return exchanges


def _use_tool(session: Session, narrator: Narrator) -> Exchange:
    narrator.say(f"You:   {TOOL_QUESTION}   (with the tools get_weather and add)")
    reply = _ask(session, TOOL_QUESTION, "off", narrator.show)
    if not reply.tool_calls:
        return Exchange(TOOL_QUESTION, "17 degrees", (reply,))
    results = tuple(run_call(call) for call in reply.tool_calls)
    for call, result in zip(reply.tool_calls, results, strict=True):
        narrator.say(f"Tool:  {call.name} returns {result}")
    answer = _ask(session, [Message("tool", result) for result in results], "off", narrator.show)
    return Exchange(TOOL_QUESTION, "17 degrees", (reply, answer), results)


def _ask(
    session: Session, turn: str | list[Message], thinking: Switch, show: Callable[[ReplyStream], Reply]
) -> Reply:
    sampling: SamplingConfig = dataclasses.replace(session.recommended_sampling(thinking), seed=SEED)
    return show(session.stream(turn, thinking=thinking, max_tokens=MAX_TOKENS, sampling=sampling))
