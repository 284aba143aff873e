"""Right answers on the tiny model's evaluation sets: what a quantization breaks, in plain numbers.

python -m qwen_edge.bench.toy_tasks FILE... [--eval FOLDER]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from qwen_edge.config import GREEDY, Switch
from qwen_edge.model import Model, load
from qwen_edge.types import Message, ToolCall

_MAX_TOKENS = 200


@dataclass(frozen=True, slots=True)
class ToyAccuracy:
    """Shares of right answers, 0 to 1, of one model file.

    Attributes:
        direct: Questions of chat.jsonl, answered without thinking.
        thinking: The same with thinking.
        tool_calls: Calls of tools.jsonl with the exact name and arguments.
        tool_answers: Answers of tools.jsonl after the tool's result, word for word.
    """

    direct: float
    thinking: float
    tool_calls: float
    tool_answers: float


def measure_toy_accuracy(model: Model, folder: Path) -> ToyAccuracy:
    """Ask every question of `chat.jsonl` and `tools.jsonl` in a folder, decoding greedily.

    Args:
        model: A model that was trained on such questions: examples/tiny-qwen3.
        folder: Where the two files are.
    """
    tools = list(_tool_results(model, folder / "tools.jsonl"))
    return ToyAccuracy(
        direct=_mean(_chat_results(model, folder / "chat.jsonl", "off")),
        thinking=_mean(_chat_results(model, folder / "chat.jsonl", "on")),
        tool_calls=_mean(iter([called for called, _ in tools])),
        tool_answers=_mean(iter([answered for _, answered in tools])),
    )


def _chat_results(model: Model, path: Path, thinking: Switch) -> Iterator[bool]:
    with model.session() as session:
        for line in _read_lines(path):
            # The history is cleared, the KV cache is not: what questions have in common is evaluated once.
            session.messages.clear()
            reply = session.send(
                line["messages"][0]["content"], thinking=thinking, max_tokens=_MAX_TOKENS, sampling=GREEDY
            )
            yield reply.text.strip() == line["answer"]


def _tool_results(model: Model, path: Path) -> Iterator[tuple[bool, bool]]:
    lines = _read_lines(path)
    with model.session(tools=lines[0]["tools"]) as session:
        for line in lines:
            session.messages.clear()
            turn = line["messages"][0]["content"]
            reply = session.send(turn, thinking="off", max_tokens=_MAX_TOKENS, sampling=GREEDY)
            called = reply.tool_calls == (ToolCall(**line["tool_call"]),)
            result = Message("tool", line["tool_result"])
            answer = session.send(result, thinking="off", max_tokens=_MAX_TOKENS, sampling=GREEDY)
            yield called, called and answer.text.strip() == line["answer"]


def _mean(results: Iterator[bool]) -> float:
    values = list(results)
    return sum(values) / len(values)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--eval",
    "folder",
    type=click.Path(exists=True, path_type=Path),
    default=Path("examples/tiny-qwen3/eval"),
    show_default=True,
    help="Folder of chat.jsonl and tools.jsonl.",
)
def main(files: tuple[Path, ...], folder: Path) -> None:
    """Print the share of right answers of each FILE."""
    click.echo(f"{'file':<28} {'direct':>8} {'thinking':>8} {'calls':>8} {'answers':>8}")
    for file in files:
        # One thread: more gain nothing on a model this small, and stall where cores are shared.
        with load(file, n_ctx=1024, n_threads=1) as model:
            found = measure_toy_accuracy(model, folder)
        row = (found.direct, found.thinking, found.tool_calls, found.tool_answers)
        click.echo(f"{file.name:<28} " + " ".join(f"{value:>8.1%}" for value in row))


if __name__ == "__main__":
    main()
