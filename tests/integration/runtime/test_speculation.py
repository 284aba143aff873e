"""Speculation on the tiny model, in both engines: the text is that of the plain loop, whatever is proposed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_edge import Model, SamplingConfig, load, speculation
from qwen_edge.config import GREEDY
from qwen_edge.engines.base import Context
from qwen_edge.speculation_gain import Balance, CallCosts
from qwen_edge.types import Reply

SEEDED = SamplingConfig(temperature=0.8, top_k=20, presence_penalty=0.5, seed=7)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is proposed is evaluated, whatever it costs."""
    monkeypatch.setattr(speculation, "best_count", lambda kinds, acceptance, costs: len(kinds))
    monkeypatch.setattr(CallCosts, "plain_s", 1.0)
    monkeypatch.setattr(CallCosts, "wants_plain", False)
    monkeypatch.setattr(Balance, "is_paused", False)


@pytest.fixture
def questions(eval_lines: Callable[[str], list[dict[str, Any]]]) -> list[str]:
    return [line["messages"][0]["content"] for line in eval_lines("chat.jsonl")[:12]]


def replies(model: Model, questions: list[str], mode: Any, sampling: SamplingConfig) -> list[Reply]:
    """Ask in two sessions, so that turns build on each other too."""
    found = []
    for start in (0, len(questions) // 2):
        with model.session(speculation=mode) as session:
            found += [
                session.send(question, sampling=sampling, max_tokens=80)
                for question in questions[start : start + len(questions) // 2]
            ]
    return found


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_prompt_lookup_says_the_same(
    tiny_model: Model, questions: list[str], sampling: SamplingConfig
) -> None:
    plain = replies(tiny_model, questions, "off", sampling)
    ahead = replies(tiny_model, questions, "prompt_lookup", sampling)
    assert [(each.text, each.thinking, each.finish_reason) for each in ahead] == [
        (each.text, each.thinking, each.finish_reason) for each in plain
    ]
    assert sum(each.stats.accepted_tokens for each in ahead) > 0
    assert sum(each.stats.proposed_tokens - each.stats.accepted_tokens for each in ahead) > 0


def test_calls_of_an_answer_held_to_a_form(tiny_model: Model, always: None) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    question = "Extract name and age as JSON: Max is 30 years old."
    answers = []
    for mode in ("off", "prompt_lookup"):
        with tiny_model.session(speculation=mode) as session:
            answers.append(session.extract(question, schema, sampling=GREEDY, max_tokens=60))
    assert answers[0] == answers[1]


@pytest.fixture
def with_itself(tiny_path: Path) -> Iterator[Model]:
    """The tiny model with itself as its draft model."""
    with load(
        tiny_path, n_ctx=1024, n_threads=1, draft_model=tiny_path, safe_kernels=_kernels(tiny_path)
    ) as model:
        yield model


def _kernels(path: Path) -> bool | None:
    return None if path.is_dir() else False


def test_a_draft_of_the_model_itself_comes_true(
    with_itself: Model, questions: list[str], always: None
) -> None:
    drafted = replies(with_itself, questions, "draft", GREEDY)
    plain = replies(with_itself, questions, "off", GREEDY)
    assert [each.text for each in drafted] == [each.text for each in plain]
    proposed = sum(each.stats.proposed_tokens for each in drafted)
    assert proposed > 0
    # Not all: some is proposed behind the place where a reply is closed or ended by its guard.
    assert sum(each.stats.accepted_tokens for each in drafted) >= 0.85 * proposed


def test_a_draft_that_is_always_wrong(
    with_itself: Model, questions: list[str], always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_edge import speculation_draft

    plain = replies(with_itself, questions, "off", GREEDY)
    right = speculation_draft._likeliest
    monkeypatch.setattr(
        speculation_draft, "_likeliest", lambda logits: ((right(logits)[0] + 1) % len(logits), 1.0)
    )
    drafted = replies(with_itself, questions, "draft", GREEDY)
    assert [each.text for each in drafted] == [each.text for each in plain]
    assert sum(each.stats.proposed_tokens for each in drafted) > 0
    assert sum(each.stats.accepted_tokens for each in drafted) == 0


def test_logits_of_all_tokens_are_those_of_each(tiny_model: Model) -> None:
    tokens = tiny_model.engine.tokenize("What is the capital of Greece? Athens is the capital.")
    context: Context = tiny_model.engine.new_context()
    expected = tiny_model.engine.score(tokens)
    context.append(tokens[:3])
    context.append_all(tokens[3:9])
    for index in range(6):
        context.select(index)
        assert abs(context.logits() - expected[3 + index]).max() < 1e-2
    context.rewind(5)
    context.append(tokens[5:6])
    assert abs(context.logits() - expected[5]).max() < 1e-2
    context.append_all(tokens[6:7])
    assert abs(context.logits() - expected[6]).max() < 1e-2
    context.close()


def test_sessions_that_share_a_cache_go_without(tiny_path: Path) -> None:
    with (
        load(
            tiny_path, n_ctx=256, n_threads=1, n_sessions=2, speculation="prompt_lookup",
            safe_kernels=_kernels(tiny_path),
        ) as model,
        model.session() as session,
    ):  # fmt: skip
        reply = session.send("What is the capital of Greece?", sampling=GREEDY, max_tokens=20)
        assert reply.stats.speculation == "off"
