"""Ten fixed prompts, each answer checked by code.

Answers are greedy: nothing is drawn, so there is no seed to pick, and one build on one machine always gives the same.
An answer that runs into the token limit has not passed, whatever it says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from qwen_edge.bench.answer_checks import (
    Check,
    in_chinese,
    in_language,
    json_object,
    mentions,
    only_number,
    only_word,
    working_code,
)
from qwen_edge.bench.local_tools import WEATHER_TOOL, get_weather, run_call
from qwen_edge.chat.template import ThinkingSupport
from qwen_edge.config import GREEDY, ThinkingConfig
from qwen_edge.model import Model
from qwen_edge.session import ReplyStream, Session
from qwen_edge.types import Message, Reply, ToolCall

MAX_TOKENS = 320

Show = Callable[[ReplyStream], Reply]
Announce = Callable[[int, "Prompt"], None]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        skill: What it asks for, in a word or two.
        text: What the user says.
        check: Of the answer; of the last one when a tool was called.
        call: The tool call that has to come first; the tool is offered, run, and its result given back.
    """

    skill: str
    text: str
    check: Check
    call: ToolCall | None = None


TEN_PROMPTS = (
    Prompt("German", "Erkläre auf Deutsch, was ein Computer ist.", in_language("German")),
    Prompt("French", "Explique en français ce qu'est un ordinateur.", in_language("French")),
    Prompt("Chinese", "请用中文用两句话介绍一下北京。", in_chinese),
    Prompt(
        "Python: primes",
        "Write a Python function is_prime(n) that returns True when the integer n is prime and False otherwise. "
        "Answer with one code block.",
        working_code(
            "assert [n for n in range(-3, 30) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]",
            "assert is_prime(7919) is True",
            "assert is_prime(7917) is False",
        ),
    ),
    Prompt(
        "Python: vowels",
        "Write a Python function count_vowels(text) that returns how many characters of text are vowels "
        "(a, e, i, o, u, in upper or lower case). Answer with one code block.",
        working_code(
            "assert count_vowels('') == 0",
            "assert count_vowels('Education') == 5",
            "assert count_vowels('RHYTHM') == 0",
            "assert count_vowels('AEIOU aeiou') == 10",
        ),
    ),
    Prompt("Sum", "What is 17 + 25? Answer with the number only.", only_number(42)),
    Prompt(
        "Word problem",
        "A shop sells pens at 3 euros each. How many euros do 8 pens cost? Answer with the number only.",
        only_number(24),
    ),
    Prompt(
        "JSON",
        'Extract name, age and city as JSON with the keys "name", "age" and "city": '
        "Anna is 31 years old and lives in Hamburg. Answer with JSON only.",
        json_object({"name": "Anna", "age": 31, "city": "Hamburg"}),
    ),
    Prompt(
        "Tool call",
        "What is the weather in Vienna? Answer in one sentence.",
        mentions(str(get_weather("Vienna")["temp_c"])),
        call=ToolCall("get_weather", {"city": "Vienna"}),
    ),
    Prompt("Fact", "What is the capital of Japan? Answer in one word.", only_word("Tokyo")),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one prompt.

    Attributes:
        prompt: The prompt.
        replies: The model's replies in order; two when a tool was called.
        problem: Why it has not passed; "" when it has.
    """

    prompt: Prompt
    replies: tuple[Reply, ...]
    problem: str

    @property
    def passed(self) -> bool:
        """Whether the check holds."""
        return not self.problem

    def to_dict(self) -> dict[str, Any]:
        """Return prompt, outputs and verdict, JSON-ready."""
        return {
            "skill": self.prompt.skill,
            "prompt": self.prompt.text,
            "replies": [reply.to_dict() for reply in self.replies],
            "passed": self.passed,
            "problem": self.problem,
        }


def ask_all(model: Model, announce: Announce, show: Show) -> Iterator[Outcome]:
    """Ask the ten prompts, each in a session of its own.

    Args:
        model: Thinking is switched off where the model can.
        announce: Called with number (from 1) and prompt before it is asked.
        show: Reads a reply to its end, showing it or not, and returns it.
    """
    switched = model.template.thinking is ThinkingSupport.SWITCHED
    # An answer that goes round in circles is seen to the limit: what it would be without help is what is checked.
    thinking = ThinkingConfig(mode="off" if switched else "auto", stop_loops=False)
    for number, prompt in enumerate(TEN_PROMPTS, 1):
        announce(number, prompt)
        tools = [WEATHER_TOOL] if prompt.call else []
        with model.session(tools=tools) as session:
            yield _ask(session, prompt, thinking, show)


def _ask(session: Session, prompt: Prompt, thinking: ThinkingConfig, show: Show) -> Outcome:
    def answer(turn: str | Message) -> Reply:
        return show(session.stream(turn, thinking=thinking, max_tokens=MAX_TOKENS, sampling=GREEDY))

    replies = [answer(prompt.text)]
    if prompt.call is not None:
        calls = replies[0].tool_calls
        if calls != (prompt.call,):
            made = ", ".join(json.dumps(call.to_dict()) for call in calls)
            return Outcome(
                prompt, tuple(replies), f"another tool call: {made}" if made else "no tool call, only text"
            )
        replies.append(answer(Message("tool", run_call(prompt.call))))
    if replies[-1].finish_reason == "length":
        return Outcome(prompt, tuple(replies), f"not finished after {MAX_TOKENS} tokens")
    return Outcome(prompt, tuple(replies), prompt.check(replies[-1].text))
