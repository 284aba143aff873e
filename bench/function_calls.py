"""Tool calls of a model, with and without a constraint: are they valid, are they right, does it leave them where none fits?

::

    pip download --no-deps bfcl-eval && unzip bfcl_eval-*.whl "bfcl_eval/data/*"
    python -m qwen_edge.bench.function_calls FILE --questions bfcl_eval/data [--limit 100]

The questions are those of the Berkeley Function-Calling Leaderboard: each comes with one function. In `simple_python` it
is to be called, in `irrelevance` it does not help. Answers are greedy and without thinking, so a build on a machine always
gives the same. Figures are not the leaderboard's, which asks with a prompt of its own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click

from qwen_edge.bench.bfcl import Question, read_questions
from qwen_edge.bench.call_match import mismatch
from qwen_edge.bench.tables import new_table
from qwen_edge.chat.coercion import fits
from qwen_edge.chat.parser import TOOL_OPEN, names_a_tool
from qwen_edge.config import GREEDY
from qwen_edge.errors import QwenEdgeError
from qwen_edge.model import Model, load
from qwen_edge.session import Session
from qwen_edge.types import ToolCall

CATEGORIES = ("simple_python", "irrelevance")
_MAX_TOKENS = 200
_N_CTX = 3072


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said to one question.

    Attributes:
        id: Of the question.
        is_constrained: Calls were held to the tool.
        text: The reply beside its calls.
        calls: Those that could be parsed.
        has_begun: It began a call, with or without tags, parsed or not.
        is_valid: It has calls, and all of them fit the tool's schema to the letter.
        mistake: Why it is wrong, "" when it is right.
    """

    id: str
    is_constrained: bool
    text: str
    calls: tuple[ToolCall, ...]
    has_begun: bool
    is_valid: bool
    mistake: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallQuality:
    """Both categories under one setting.

    Attributes:
        is_constrained: Calls were held to the tool.
        n_asked: Questions to which a call is the answer.
        began: Replies to them that began a call.
        valid: Those with calls that fit the tool's schema.
        right: Those with exactly the expected call.
        n_irrelevant: Questions to which no call is the answer.
        refrained: Replies to them without a call.
    """

    is_constrained: bool
    n_asked: int
    began: int
    valid: int
    right: int
    n_irrelevant: int
    refrained: int


def ask_questions(model: Model, questions: Iterable[Question]) -> Iterator[Answer]:
    """Ask each question without the constraint and with it; yield both answers."""
    for question in questions:
        with model.session(tools=[question.tool]) as session:
            # The prompt is evaluated here, so that both find the same KV cache, to the last bit.
            session.send(question.text, thinking="off", max_tokens=1, sampling=GREEDY)
            for is_constrained in (False, True):
                yield _ask(session, question, is_constrained)


def _ask(session: Session, question: Question, is_constrained: bool) -> Answer:
    session.messages.clear()
    session.constrained_calls = is_constrained
    reply = session.send(question.text, thinking="off", max_tokens=_MAX_TOKENS, sampling=GREEDY)
    calls, tool = reply.tool_calls, question.tool
    has_begun = bool(calls) or TOOL_OPEN in reply.text or names_a_tool(reply.text, [tool["name"]])
    schema = {"additionalProperties": False, **tool["parameters"]}
    is_valid = all(call.name == tool["name"] and fits(call.arguments, schema) for call in calls)
    if question.answers is None:
        mistake = f"{len(calls)} calls" if calls else ""
    else:
        mistake = mismatch(calls, question.function, question.answers)
    return Answer(
        id=question.id,
        is_constrained=is_constrained,
        text=reply.text,
        calls=calls,
        has_begun=has_begun,
        is_valid=bool(calls) and is_valid,
        mistake=mistake,
    )


def call_quality(
    asked: Sequence[Answer], irrelevant: Sequence[Answer], *, is_constrained: bool
) -> CallQuality:
    """Count the answers under one setting.

    Args:
        asked: To questions that a call answers.
        irrelevant: To questions that none answers.
        is_constrained: Which of them to count.
    """
    asked = [answer for answer in asked if answer.is_constrained == is_constrained]
    irrelevant = [answer for answer in irrelevant if answer.is_constrained == is_constrained]
    return CallQuality(
        is_constrained=is_constrained,
        n_asked=len(asked),
        began=sum(answer.has_begun for answer in asked),
        valid=sum(answer.is_valid for answer in asked),
        right=sum(not answer.mistake for answer in asked),
        n_irrelevant=len(irrelevant),
        refrained=sum(not answer.calls for answer in irrelevant),
    )


def share(part: int, whole: int) -> str:
    """Return a share of 0 to 1 with three digits, "-" of nothing."""
    return f"{part / whole:.3f}" if whole else "-"


def _print_table(results: Sequence[CallQuality]) -> None:
    from rich.console import Console

    table = new_table(
        "Calls",
        "Asked",
        "Began\na call",
        "Valid",
        "Valid of\nbegun",
        "Right",
        "Irre-\nlevant",
        "No call\nthen",
    )
    for result in results:
        table.add_row(
            "held to the tool" if result.is_constrained else "free",
            str(result.n_asked),
            share(result.began, result.n_asked),
            share(result.valid, result.n_asked),
            share(result.valid, result.began),
            share(result.right, result.n_asked),
            str(result.n_irrelevant),
            share(result.refrained, result.n_irrelevant),
        )
    Console(highlight=False).print(table)


def measure(
    model: Model,
    folder: Path,
    limit: int | None = None,
    categories: Sequence[str] = CATEGORIES,
    seen: Callable[[Answer], None] = lambda answer: None,
) -> list[CallQuality]:
    """Ask the questions; return their figures without and with the constraint.

    Args:
        model: Any that takes tools.
        folder: bfcl_eval/data of the bfcl-eval package.
        limit: Most questions of each category; None asks all.
        categories: Which of CATEGORIES.
        seen: Is told every answer.

    Raises:
        ConfigError, FormatError: As in read_questions().
    """
    sets = {category: read_questions(folder, category)[:limit] for category in categories}
    answers: dict[str, list[Answer]] = {category: [] for category in CATEGORIES}
    for category, questions in sets.items():
        for answer in ask_questions(model, questions):
            seen(answer)
            answers[category].append(answer)
    asked, irrelevant = (answers[category] for category in CATEGORIES)
    return [call_quality(asked, irrelevant, is_constrained=setting) for setting in (False, True)]


@click.command()
@click.argument("file")
@click.option(
    "--questions",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="bfcl_eval/data of the bfcl-eval package.",
)
@click.option("--only", type=click.Choice(CATEGORIES), help="One kind of question; default: both.")
@click.option("--limit", type=click.IntRange(min=1), help="Most questions of each kind; default: all.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: the physical cores.")
@click.option(
    "--answers",
    type=click.File("w", encoding="utf-8"),
    help="Write every answer here, as JSON lines.",
)
@click.option(
    "--format", "output_format", type=click.Choice(["human", "json"]), default="human", show_default=True
)
def main(
    file: str,
    folder: Path,
    only: str | None,
    limit: int | None,
    threads: int | None,
    answers: IO[str] | None,
    output_format: str,
) -> None:
    """Measure the tool calls of FILE, a GGUF file or the name of a model."""

    def write(answer: Answer) -> None:
        if answers is not None:
            line = json.dumps(dataclasses.asdict(answer), ensure_ascii=False)
            click.echo(line, file=answers)

    try:
        with load(file, n_ctx=_N_CTX, n_threads=threads, prefix_cache=False) as model:
            results = measure(model, folder, limit, (only,) if only else CATEGORIES, write)
    except QwenEdgeError as error:
        raise click.ClickException(str(error)) from error
    if output_format == "human":
        _print_table(results)
        return
    document: dict[str, Any] = {
        "schema": "qwen-edge/function-calls/1",
        "file": file,
        "results": [dataclasses.asdict(result) for result in results],
    }
    click.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
