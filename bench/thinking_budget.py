"""What a thinking budget costs in answers: the tiny model's questions and tool calls under several budgets.

python -m qwen_edge.bench.thinking_budget FILE [--budgets 0,8,32,none] [--eval FOLDER]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from qwen_edge.bench.tables import new_table
from qwen_edge.chat.parser import TOOL_OPEN
from qwen_edge.config import GREEDY, ThinkingLike
from qwen_edge.model import Model, load
from qwen_edge.session import Session
from qwen_edge.types import Message, Reply, ToolCall

_MAX_TOKENS = 200
_JSON_TYPES: dict[str, type] = {"string": str, "integer": int}

Budget = int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetResult:
    """One budget on both evaluation sets; shares are 0 to 1.

    Attributes:
        budget: Most thinking tokens; None sets none (thinking is on).
        n_replies: Replies to questions, to tool questions and to tool results.
        answered: Replies with text or a call.
        complete: Replies that the model brought to its own end.
        right: Questions of chat.jsonl with exactly the expected answer.
        called: Questions of tools.jsonl with exactly the expected call.
        tool_answers: Questions of tools.jsonl with exactly the expected answer after the tool's result.
        cut: Replies of both sets whose thought was cut.
        thinking_tokens: Mean of all replies.
        calls_opened: Calls that the model began outside of a thought.
        calls_parsed: Those that were calls of a tool on offer.
        calls_executed: Those that the tool's schema took, and that were run.
    """

    budget: Budget
    n_replies: int
    answered: float
    complete: float
    right: float
    called: float
    tool_answers: float
    cut: float
    thinking_tokens: float
    calls_opened: int
    calls_parsed: int
    calls_executed: int


@dataclass(frozen=True, slots=True)
class _ToolTurn:
    """A tool question: the reply, the calls that ran, and the answer after their results (None without a call)."""

    reply: Reply
    executed: int
    answer: Reply | None
    is_called: bool
    is_right: bool


def measure_budget(model: Model, folder: Path, budget: Budget) -> BudgetResult:
    """Ask every question of `chat.jsonl` and `tools.jsonl` in a folder, decoding greedily.

    Args:
        model: A model that was trained on such questions: examples/tiny-qwen3.
        folder: Where the two files are.
        budget: Most thinking tokens; None sets none.
    """
    thinking: ThinkingLike = "on" if budget is None else budget
    lines = _read_lines(folder / "chat.jsonl")
    with model.session() as session:
        chat = [_ask(session, line["messages"][0]["content"], thinking) for line in lines]
    right = [reply.text.strip() == line["answer"] for reply, line in zip(chat, lines, strict=True)]
    lines = _read_lines(folder / "tools.jsonl")
    with model.session(tools=lines[0]["tools"]) as session:
        turns = [_tool_turn(session, line, thinking) for line in lines]
    replies = [*chat, *(turn.reply for turn in turns), *(turn.answer for turn in turns if turn.answer)]
    parsed = sum(len(turn.reply.tool_calls) for turn in turns)
    return BudgetResult(
        budget=budget,
        n_replies=len(replies),
        answered=_share([bool(reply.text.strip() or reply.tool_calls) for reply in replies]),
        complete=_share([reply.is_complete for reply in replies]),
        right=_share(right),
        called=_share([turn.is_called for turn in turns]),
        tool_answers=_share([turn.is_right for turn in turns]),
        cut=_share([reply.stats.thought_cut is not None for reply in replies]),
        thinking_tokens=sum(reply.stats.thinking_tokens for reply in replies) / len(replies),
        # A call that could not be parsed stays in the text as it was written.
        calls_opened=parsed + sum(turn.reply.text.count(TOOL_OPEN) for turn in turns),
        calls_parsed=parsed,
        calls_executed=sum(turn.executed for turn in turns),
    )


def _ask(session: Session, turn: str, thinking: ThinkingLike) -> Reply:
    # The history is cleared, the KV cache is not: what questions have in common is evaluated once.
    session.messages.clear()
    return session.send(turn, thinking=thinking, max_tokens=_MAX_TOKENS, sampling=GREEDY)


def _tool_turn(session: Session, line: dict[str, Any], thinking: ThinkingLike) -> _ToolTurn:
    reply = _ask(session, line["messages"][0]["content"], thinking)
    expected = ToolCall(**line["tool_call"])
    results = [_run(call, line, expected) for call in reply.tool_calls]
    executed = sum(result is not None for result in results)
    if not results:
        return _ToolTurn(reply, executed, None, is_called=False, is_right=False)
    messages = [Message("tool", result or '{"error": "wrong arguments"}') for result in results]
    answer = session.send(messages, thinking=thinking, max_tokens=_MAX_TOKENS, sampling=GREEDY)
    is_called = reply.tool_calls == (expected,)
    return _ToolTurn(reply, executed, answer, is_called, is_called and answer.text.strip() == line["answer"])


def _run(call: ToolCall, line: dict[str, Any], expected: ToolCall) -> str | None:
    """Run a call; return its result as JSON, None when no tool takes it.

    The set holds the result of the expected call; any other that the schema allows gives its own arguments back.
    """
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in line["tools"]}
    properties = schemas.get(call.name, {}).get("properties")
    if properties is None or set(call.arguments) != set(properties):
        return None
    for name, value in call.arguments.items():
        if type(value) is not _JSON_TYPES[properties[name]["type"]]:
            return None
    return str(line["tool_result"]) if call == expected else json.dumps({"called_with": call.arguments})


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _parse_budgets(text: str) -> list[Budget]:
    try:
        return [None if word.strip() == "none" else int(word) for word in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} must be numbers and none, as in 0,8,32,none") from None


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--budgets", type=_parse_budgets, default="0,8,32,none", show_default=True)
@click.option(
    "--eval",
    "folder",
    type=click.Path(exists=True, path_type=Path),
    default=Path("examples/tiny-qwen3/eval"),
    show_default=True,
    help="Folder of chat.jsonl and tools.jsonl.",
)
def main(file: Path, budgets: list[Budget], folder: Path) -> None:
    """Print what FILE answers under each budget."""
    from rich.console import Console

    table = new_table(
        "Budget", "Non-\nempty", "Comp-\nlete", "Right", "Called", "Tool\nanswers", "Thought\ncut",
        "Thinking\ntokens", "Calls opened/\nparsed/run",
    )  # fmt: skip
    # One thread: more gain nothing on a model this small, and stall where cores are shared.
    with load(file, n_ctx=1024, n_threads=1) as model:
        for budget in budgets:
            found = measure_budget(model, folder, budget)
            shares = (
                found.answered,
                found.complete,
                found.right,
                found.called,
                found.tool_answers,
                found.cut,
            )
            table.add_row(
                "none" if budget is None else str(budget),
                *(f"{share:.3f}" for share in shares),
                f"{found.thinking_tokens:.1f}",
                f"{found.calls_opened}/{found.calls_parsed}/{found.calls_executed}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
