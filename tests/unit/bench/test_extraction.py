"""Scoring of extracted values, and the tasks themselves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from click.testing import CliRunner

from qwen_edge.bench import extraction
from qwen_edge.bench.extraction import extract_all, extraction_quality, read_tasks
from qwen_edge.bench.json_score import count_fields, find_json
from qwen_edge.chat.coercion import fits
from qwen_edge.config import LoadConfig
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.model import Model


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Here it is:\n```json\n{"a": 1}\n```\nDone.', {"a": 1}),
        ("```\n[1, 2]\n```", [1, 2]),
        ('Sure! {"a": {"b": 2}} is it.', {"a": {"b": 2}}),
        ('```json\n{"a": 1,}\n```', None),
        ('{"a": 1', None),
        ("no JSON", None),
        ("", None),
    ],
)
def test_json_is_found_in_a_reply(text: str, value: Any) -> None:
    assert find_json(text) == value


@pytest.mark.parametrize(
    ("value", "right", "fields"),
    [
        ({"a": 1, "b": {"c": "x", "d": [1, 2]}}, 4, 4),
        ({"a": 1.0, "b": {"c": "x", "d": [1, 2]}}, 4, 4),
        ({"a": True, "b": {"c": "X", "d": [2, 1]}}, 0, 4),
        ({"a": 1, "b": {"c": "x", "d": [1, 2, 3]}, "e": None}, 4, 6),
        ({"a": 1, "b": []}, 1, 5),
        (None, 0, 4),
        ("a", 0, 4),
        ({}, 0, 4),
    ],
)
def test_fields_are_counted(value: Any, right: int, fields: int) -> None:
    assert count_fields(value, {"a": 1, "b": {"c": "x", "d": [1, 2]}}) == (right, fields)


def test_the_tasks() -> None:
    tasks = read_tasks()
    assert Counter(Counter(task.schema_name for task in tasks).values()) == {5: 12}
    assert len({task.prompt for task in tasks}) == 60
    for task in tasks:
        assert fits(task.expected, task.schema), task
        assert len({task.schema_name for task in tasks[:12]}) == 12  # so that a limit takes some of each


REPLIES = (
    "x", 'It is {"name": "Max Huber", "age": "30", "city": "Vienna", "is_married": true}.',
    '{"name": "Max Huber", "age": "30", "city": "Vienna", "is_married": true}',
    "x", "I cannot.", '{"customer": "Lena Schmidt", "items": [{"product": "lamp", "quantity": 2, "unit_price": 35.5}], "is_paid": true}',
    "x", "{}", '{"title": "B", "date": "2025-03-14", "start": "10:00", "participants": ["Anna"]}',
)  # fmt: skip


def scripted_model() -> Model:
    replies = iter(REPLIES)
    return Model(FakeEngine(lambda prompt: next(replies), config=LoadConfig(n_ctx=8192)))


def test_figures_without_and_with_the_constraint() -> None:
    with scripted_model() as model:
        answers = list(extract_all(model, read_tasks()[:3]))
    free, held = (extraction_quality(answers, is_constrained=setting) for setting in (False, True))
    assert (free.n_tasks, free.valid, free.exact) == (3, 0.0, 0.0)
    assert free.fields == pytest.approx(3 / (4 + 5 + 6))
    assert (held.n_tasks, held.valid) == (3, 1.0)
    assert held.exact == pytest.approx(2 / 3)
    assert held.fields == pytest.approx((4 + 5 + 3) / (4 + 5 + 6))


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "load", lambda file, **settings: scripted_model())
    result = CliRunner().invoke(extraction.main, ["m.gguf", "--limit", "3"])
    rows = [line.split() for line in result.output.splitlines()]
    assert ["free", "3", "0.000", "0.000", "0.200"] in rows
    assert ["held", "to", "the", "schema", "3", "1.000", "0.667", "0.800"] in rows
