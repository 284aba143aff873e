"""The demo's conversations with a model that says what it is told to."""

from __future__ import annotations

import json

import pytest

from qwen_edge.bench import demo_chat, ten_prompts
from qwen_edge.bench.local_tools import run_call
from qwen_edge.config import LoadConfig
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.model import Model
from qwen_edge.types import ToolCall

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Vienna"}}\n</tool_call>'

RIGHT = {
    "German": "Ein Computer ist eine Maschine, die mit Daten arbeitet und die man steuern kann.",
    "French": "Un ordinateur est une machine qui traite des données avec un programme.",
    "Chinese": "北京是中国的首都，历史悠久。",
    "Python: primes": "```python\ndef is_prime(n):\n    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))\n```",
    "Python: vowels": "```python\ndef count_vowels(text):\n    return sum(c in 'aeiouAEIOU' for c in text)\n```",
    "Sum": "42",
    "Word problem": "24",
    "JSON": '{"name": "Anna", "age": 31, "city": "Hamburg"}',
    "Tool call": CALL,
    "Fact": "Tokyo",
}
SKILL_OF = {prompt.text: prompt.skill for prompt in ten_prompts.TEN_PROMPTS}


def script(answers, after_tool="It is 17 degrees and sunny in Vienna."):
    def answer(rendered: str) -> str:
        if "<|im_start|>tool" in rendered:
            return after_tool
        return next(answers[skill] for text, skill in SKILL_OF.items() if text in rendered)

    return answer


def ask(answers, **kwargs):
    announced = []
    with Model(FakeEngine(script(answers, **kwargs), config=LoadConfig(n_ctx=8192))) as model:
        outcomes = list(ten_prompts.ask_all(model, lambda *step: announced.append(step), read))
    assert [number for number, _ in announced] == list(range(1, 11))
    return {outcome.prompt.skill: outcome for outcome in outcomes}


def read(stream):
    for _ in stream:
        pass
    return stream.reply


class Silent:
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def show(self, stream):
        return read(stream)


def test_ten_right_answers_pass():
    outcomes = ask(RIGHT)
    assert len(outcomes) == 10
    assert {skill: outcome.problem for skill, outcome in outcomes.items()} == dict.fromkeys(outcomes, "")


@pytest.mark.parametrize("skill", RIGHT)
def test_a_wrong_answer_fails_alone(skill):
    outcomes = ask({**RIGHT, skill: "I do not know."})
    assert [name for name, outcome in outcomes.items() if not outcome.passed] == [skill]


def test_talking_about_a_call_is_none():
    outcome = ask({**RIGHT, "Tool call": "I would call get_weather for Vienna."})["Tool call"]
    assert outcome.problem == "no tool call, only text"
    assert len(outcome.replies) == 1


def test_another_call_is_named():
    outcome = ask({**RIGHT, "Tool call": CALL.replace("Vienna", "Madrid")})["Tool call"]
    assert outcome.problem == 'another tool call: {"name": "get_weather", "arguments": {"city": "Madrid"}}'


def test_the_tool_result_has_to_be_used():
    outcome = ask(RIGHT, after_tool="The weather is nice.")["Tool call"]
    assert outcome.problem == "does not mention 17"
    assert len(outcome.replies) == 2


def test_an_answer_that_never_ends_has_not_passed():
    assert (
        ask({**RIGHT, "Chinese": "北京是首都。" * 400})["Chinese"].problem == "not finished after 320 tokens"
    )


def test_outcomes_are_json_ready():
    data = ask(RIGHT)["Tool call"].to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["passed"] is True


def test_the_demo_calls_the_tool_and_gives_its_result_back():
    def answer(rendered: str) -> str:
        if '"temp_c": 17' in rendered:
            return "It is 17 degrees and sunny in Vienna."
        if demo_chat.TOOL_QUESTION in rendered:
            return CALL
        return "<think>\n30 + 30 = 60\n</think>\n\n66" if "32 + 34" in rendered else "Athens."

    narrator = Silent()
    with Model(FakeEngine(answer)) as model:
        direct, thought, tool = demo_chat.converse(model, narrator)
    assert direct.is_right
    assert thought.is_right
    assert thought.replies[0].thinking == "30 + 30 = 60"
    assert tool.is_right
    assert tool.tool_results == ('{"temp_c": 17, "sky": "sunny"}',)
    assert any("get_weather returns" in line for line in narrator.lines)


def test_a_model_that_calls_no_tool_is_told_of_as_it_is():
    with Model(FakeEngine("Sunny, I think.")) as model:
        *_, tool = demo_chat.converse(model, Silent())
    assert not tool.is_right
    assert tool.tool_results == ()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (ToolCall("add", {"a": 2, "b": 3}), '{"sum": 5}'),
        (ToolCall("get_weather", {"city": "Atlantis"}), '{"error": "no weather for Atlantis"}'),
        (ToolCall("fly", {}), '{"error": "no tool fly"}'),
    ],
)
def test_local_tools(call, expected):
    assert run_call(call) == expected


@pytest.mark.parametrize("arguments", [{}, {"town": "Vienna"}, {"city": 3}])
def test_wrong_arguments_are_a_result_for_the_model(arguments):
    assert "error" in json.loads(run_call(ToolCall("get_weather", arguments)))
