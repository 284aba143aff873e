"""Tool calls and typed answers of the tiny model: that the path runs. What it scores is not the point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from qwen_edge.bench import extraction, function_calls

WEATHER = {
    "name": "get_weather",
    "description": "Current weather of a city.",
    "parameters": {"type": "dict", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def run(command: Any, *arguments: str) -> str:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def question(name: str, text: str) -> dict[str, Any]:
    return {"id": name, "question": [[{"role": "user", "content": text}]], "function": [WEATHER]}


def test_function_calls(tiny_bf16: Path, tmp_path: Path) -> None:
    asked = [("simple_python_0", "Vienna"), ("simple_python_1", "Oslo")]
    files = {
        "BFCL_v4_simple_python.json": [
            question(name, f"How is the weather in {city}?") for name, city in asked
        ],
        "possible_answer/BFCL_v4_simple_python.json": [
            {"id": name, "ground_truth": [{"get_weather": {"city": [city]}}]} for name, city in asked
        ],
        "BFCL_v4_irrelevance.json": [question("irrelevance_0", "What is the capital of Greece?")],
    }
    (tmp_path / "possible_answer").mkdir()
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
    answers = tmp_path / "answers.jsonl"
    options = ["--questions", str(tmp_path), "--threads", "1", "--answers", str(answers), "--format", "json"]
    document = json.loads(run(function_calls.main, str(tiny_bf16), *options))
    assert document["schema"] == "qwen-edge/function-calls/1"
    free, held = document["results"]
    assert (free["is_constrained"], held["is_constrained"]) == (False, True)
    for result in (free, held):
        assert (result["n_asked"], result["n_irrelevant"]) == (2, 1)
        assert result["right"] == result["valid"] == result["began"] == 2  # it was trained on this tool
    assert [json.loads(line)["id"] for line in answers.read_text().splitlines()] == [
        "simple_python_0", "simple_python_0", "simple_python_1", "simple_python_1", "irrelevance_0", "irrelevance_0",
    ]  # fmt: skip


def test_extraction(tiny_bf16: Path) -> None:
    options = ["--threads", "1", "--limit", "2", "--format", "json"]
    document = json.loads(run(extraction.main, str(tiny_bf16), *options))
    assert document["schema"] == "qwen-edge/extraction/1"
    free, held = document["results"]
    assert (free["is_constrained"], held["is_constrained"], held["n_tasks"]) == (False, True, 2)
    assert 0 <= free["valid"] <= 1
