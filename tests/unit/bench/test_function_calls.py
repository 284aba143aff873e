"""Reading the leaderboard's files, and scoring replies of a scripted engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qwen_edge.bench import function_calls
from qwen_edge.bench.bfcl import as_json_schema, read_questions
from qwen_edge.bench.function_calls import CallQuality, main, measure
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import ConfigError, FormatError
from qwen_edge.model import Model

FUNCTION = {
    "name": "math.area",
    "description": "Area of a rectangle.",
    "parameters": {
        "type": "dict",
        "properties": {"a": {"type": "float"}, "b": {"type": "integer"}},
        "required": ["a"],
    },
}


def question(number: int, text: str, category: str) -> dict[str, Any]:
    return {
        "id": f"{category}_{number}",
        "question": [[{"role": "user", "content": text}]],
        "function": [FUNCTION],
    }


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = ["good", "untyped", "bare", "silent", "cut"]
    write_lines(
        tmp_path / "BFCL_v4_simple_python.json",
        [question(i, text, "simple_python") for i, text in enumerate(texts)],
    )
    write_lines(
        tmp_path / "possible_answer" / "BFCL_v4_simple_python.json",
        [
            {"id": f"simple_python_{i}", "ground_truth": [{"math.area": {"a": [2.0], "b": [3, ""]}}]}
            for i in range(len(texts))
        ],
    )
    write_lines(
        tmp_path / "BFCL_v4_irrelevance.json",
        [question(i, text, "irrelevance") for i, text in enumerate(["silent", "good"])],
    )
    write_lines(tmp_path / "BFCL_v4_live_irrelevance.json", [])
    return tmp_path


SCRIPTS = {
    "good": '<tool_call>\n{"name": "math.area", "arguments": {"a": 2}}\n</tool_call>',
    "untyped": '<tool_call>\n{"name": "math.area", "arguments": {"a": "2", "b": "3"}}\n</tool_call>',
    "bare": '{"name": "math.area", "arguments": {"c": 1, "a": 2, "b": 3}}',
    "silent": "It is 6.",
    "cut": '<tool_call>\n{"name": "math.area", "arguments": ' + "{" * 300,
}


def script(prompt: str) -> str:
    return SCRIPTS[prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]]


def test_figures_without_and_with_the_constraint(folder: Path) -> None:
    answers = []
    with Model(FakeEngine(script)) as model:
        free, held = measure(model, folder, seen=answers.append)
    assert free == CallQuality(
        is_constrained=False, n_asked=5, began=4, valid=1, right=1, n_irrelevant=2, refrained=1
    )
    # The engine writes the texts' digits without the quotation marks, and ends the call that it was cut off in.
    assert held.began == 4
    assert held.valid == 4
    assert held.right == 3
    assert held.refrained == 1
    mistakes = {(answer.id, answer.is_constrained): answer.mistake for answer in answers}
    assert mistakes["simple_python_1", False].startswith("a is '2'")
    assert mistakes["simple_python_2", False] == "c is not expected"
    assert mistakes["simple_python_3", True] == "0 calls"
    assert mistakes["irrelevance_1", True] == "1 calls"


def test_a_limit_holds_for_each_kind(folder: Path) -> None:
    with Model(FakeEngine(script)) as model:
        free, held = measure(model, folder, 1)
        only, _ = measure(model, folder, categories=["irrelevance"])
    assert (free.n_asked, free.n_irrelevant, free.right, held.right) == (1, 1, 1, 1)
    assert (only.n_asked, only.n_irrelevant) == (0, 2)


def test_the_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_calls, "load", lambda file, **settings: Model(FakeEngine(script)))
    result = CliRunner().invoke(main, ["m.gguf", "--questions", str(folder), "--only", "simple_python"])
    rows = [line.split() for line in result.output.splitlines()]
    assert ["free", "5", "0.800", "0.200", "0.250", "0.200", "0", "-"] in rows
    assert ["held", "to", "the", "tool", "5", "0.800", "0.800", "1.000", "0.600", "0", "-"] in rows


def test_types_become_those_of_json_schema() -> None:
    assert as_json_schema({
        "type": "dict",
        "properties": {
            "p": {"type": "tuple", "items": {"type": "float"}, "description": "x"},
            "q": {"type": "dict", "properties": {"r": {"type": "any"}}},
            "type": {"type": "string", "enum": ["float"], "default": "float"},
        },
        "required": ["p"],
    }) == {
        "type": "object",
        "properties": {
            "p": {"type": "array", "items": {"type": "number"}, "description": "x"},
            "q": {"type": "object", "properties": {"r": {}}},
            "type": {"type": "string", "enum": ["float"], "default": "float"},
        },
        "required": ["p"],
    }  # fmt: skip


def test_files_that_are_not_there_or_something_else(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no questions of simple_python"):
        read_questions(tmp_path / "nothing", "simple_python")
    (folder / "BFCL_v4_irrelevance.json").write_text('{"id": 1\n')
    with pytest.raises(FormatError, match="not JSON lines"):
        read_questions(folder, "irrelevance")
    write_lines(folder / "BFCL_v4_irrelevance.json", [{"id": "irrelevance_0", "question": []}])
    with pytest.raises(FormatError, match="no question of irrelevance"):
        read_questions(folder, "irrelevance")
    write_lines(folder / "possible_answer" / "BFCL_v4_simple_python.json", [])
    with pytest.raises(FormatError, match="no question of simple_python"):
        read_questions(folder, "simple_python")


def test_a_model_that_is_not_there_is_said_in_a_line(folder: Path) -> None:
    result = CliRunner().invoke(main, ["no-such-file.gguf", "--questions", str(folder)])
    assert result.exit_code == 1
    assert "Error: " in result.output
    assert "Traceback" not in result.output
