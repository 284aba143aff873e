from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen_edge import Model
from qwen_edge.chat import constraint as constraints
from qwen_edge.chat.coercion import fits
from qwen_edge.config import GREEDY, SamplingConfig
from qwen_edge.generation import GenerationRequest

Lines = Callable[[str], list[dict[str, Any]]]
WILD = {"temperature": 1.5, "top_k": 0, "top_p": 1.0}


@dataclass
class Person:
    name: str
    age: int


def json_tasks(lines: list[dict[str, Any]]) -> list[tuple[str, Person]]:
    return [
        (line["messages"][0]["content"], Person(**json.loads(line["answer"])))
        for line in lines
        if line["answer"].startswith("{")
    ]


def test_extracts_what_it_was_trained_on(tiny_model: Model, eval_lines: Lines) -> None:
    tasks = json_tasks(eval_lines("chat.jsonl"))
    assert len(tasks) >= 20
    right = plain = 0
    for prompt, expected in tasks:
        with tiny_model.session() as session:
            right += expected == session.extract(
                prompt, Person, thinking="off", sampling=GREEDY, show_schema=False
            )
        with tiny_model.session() as session:
            answer = session.send(prompt, thinking="off", sampling=GREEDY).text
            plain += answer == json.dumps(vars(expected))
    assert right >= plain > 0


@pytest.mark.parametrize("question", ["What is 12 + 30?", "What is the capital of Greece?"])
def test_thinks_first_as_without_a_constraint(tiny_model: Model, question: str) -> None:
    with tiny_model.session() as session:
        free = session.send(question, thinking="on", sampling=GREEDY)
    with tiny_model.session() as session:
        stream = session.extract_stream(question, regex="[A-Za-z0-9.]+", thinking="on", sampling=GREEDY)
        parts = list(stream)
    assert stream.reply.thinking == free.thinking != ""
    assert stream.result == parts[-1] == free.text
    assert stream.reply.stats.generated_tokens == free.stats.generated_tokens


@pytest.mark.parametrize("seed", range(6))
def test_calls_are_valid_however_wildly_it_samples(tiny_model: Model, eval_lines: Lines, seed: int) -> None:
    line = eval_lines("tools.jsonl")[seed]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in line["tools"]}
    with tiny_model.session(tools=line["tools"]) as session:
        prompt = session._template.render(
            [*session.messages, *_user(line)], tools=session.tools, enable_thinking=False
        )
        tokens = tiny_model.engine.tokenize(prompt + "<tool_call>")
        guide = session._tool_guide()
        assert guide is not None
        request = GenerationRequest(
            tokens=tokens, sampling=SamplingConfig(**WILD, seed=seed), max_tokens=600, guide=_Opened(guide)
        )
        text = _raw_text(session, request)
    call = json.loads(text.removesuffix("</tool_call>"))
    assert fits(call["arguments"], {"additionalProperties": False, **schemas[call["name"]]})


def test_tool_functions_end_to_end(tiny_model: Model, eval_lines: Lines) -> None:
    cities: list[str] = []

    def get_weather(city: str) -> dict[str, Any]:
        """Current weather of a city."""
        cities.append(city)
        return {"temp_c": 31, "sky": "sunny"}

    def add(a: int, b: int) -> dict[str, int]:
        """Add two integers."""
        return {"sum": a + b}

    def set_timer(minutes: int) -> dict[str, bool]:
        """Start a timer."""
        return {"ok": True}

    with tiny_model.session(tools=[get_weather, add, set_timer]) as session:
        reply = session.run("How is the weather in Vienna?", thinking="off", sampling=GREEDY)
    assert cities == ["Vienna"]
    assert reply.text == "It is 31 degrees and sunny in Vienna."


def test_enumerations_and_numbers_are_held(tiny_model: Model) -> None:
    for seed in range(5):
        with tiny_model.session() as session:
            mood = session.extract(
                "How are you?",
                tuple[Literal["good", "bad"], bool],
                thinking="off",
                sampling=SamplingConfig(temperature=1.0, seed=seed),
            )
        assert mood[0] in ("good", "bad")
        assert mood[1] in (True, False)


class _Some:
    """Allows some tokens, and counts what it is asked."""

    def __init__(self, allowed: NDArray[np.bool_]) -> None:
        self._allowed = allowed
        self.masks = 0

    def allows(self, token: int) -> bool:
        return bool(self._allowed[token])

    def mask(self) -> NDArray[np.uint32]:
        self.masks += 1
        bits = np.zeros(-(-len(self._allowed) // 32) * 32, dtype=np.uint8)
        bits[: len(self._allowed)] = self._allowed
        return np.packbits(bits, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.02, 0.001])
@pytest.mark.parametrize("sampling", [
    GREEDY,
    SamplingConfig(temperature=0.0, presence_penalty=1.5, penalty_last_n=16),
    SamplingConfig(temperature=0.0, repetition_penalty=0.9, penalty_last_n=16),  # needs the whole vocabulary
])  # fmt: skip
def test_allowed_tokens_are_the_best_of_those_allowed(
    tiny_model: Model, sampling: SamplingConfig, share: float
) -> None:
    """Against numpy over the whole vocabulary; and the logits stay what the model computed."""
    engine = tiny_model.engine
    some = _Some(np.random.default_rng(5).random(engine.info.n_vocab) < share)
    context = engine.new_context()
    tokens = engine.tokenize("And the king said")
    context.append(tokens)
    context.start_sampling(sampling)
    generated: list[int] = []
    for _ in range(20):
        scored = engine.score(tokens)[-1]
        logits = context.logits().astype(np.float64)
        for token in set(generated[-sampling.penalty_last_n :]):
            factor = sampling.repetition_penalty
            logits[token] = logits[token] * factor if logits[token] <= 0 else logits[token] / factor
            logits[token] -= sampling.presence_penalty
        token = context.sample(some)
        best = int(np.argmax(np.where(some._allowed, logits, -np.inf)))
        assert token == best
        np.testing.assert_allclose(context.logits(), scored, atol=0.05)
        generated.append(token)
        tokens.append(token)
        context.append([token])
    assert (some.masks > 0) == (share < 1.0)
    context.close()


@pytest.mark.parametrize("sampling", [
    SamplingConfig(temperature=1.0, top_k=20, seed=3),
    SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, seed=3),
])  # fmt: skip
def test_what_allows_all_changes_nothing(tiny_model: Model, sampling: SamplingConfig) -> None:
    engine = tiny_model.engine
    everything = _Some(np.ones(engine.info.n_vocab, dtype=np.bool_))

    def walk(constraint: _Some | None) -> list[int]:
        context = engine.new_context()
        context.append(engine.tokenize("And the king said"))
        context.start_sampling(sampling)
        out = []
        for _ in range(30):
            out.append(context.sample(constraint))
            context.append(out[-1:])
        context.close()
        return out

    assert walk(everything) == walk(None)
    assert everything.masks == 0


def test_the_vocabulary_knows_qwens_markers(tiny_model: Model) -> None:
    vocabulary = constraints.vocabulary_of(tiny_model.engine)
    for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        assert tiny_model.engine.tokenize(tag) == [vocabulary.marker(tag)]
    assert tiny_model.engine.tokenize("<|im_end|>")[0] in vocabulary.ends


def _user(line: dict[str, Any]) -> list[Any]:
    from qwen_edge import Message

    return [Message.from_dict(message) for message in line["messages"]]


class _Opened:
    """A guide for a prompt that ends with the opening tag: the call begins with the reply."""

    def __init__(self, guide: constraints.Guide) -> None:
        self._guide = guide
        self._parser = constraints.ReplyParser()
        self._parser.feed("<tool_call>")

    def constraint_for(self, parser: constraints.ReplyParser) -> constraints.StepConstraint | None:
        return self._guide.constraint_for(self._parser)


def _raw_text(session: Any, request: GenerationRequest) -> str:
    from qwen_edge.session import Outcome, ReplyStream

    outcome = Outcome()
    for _ in ReplyStream(session._continue(request, outcome), outcome):
        pass
    assert outcome.reply is not None
    return outcome.reply.text
