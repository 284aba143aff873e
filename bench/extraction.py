"""Typed answers of a model, with and without a constraint: do they fit the schema, and are they right?

python -m qwen_edge.bench.extraction FILE [--limit 60]

60 short texts over 12 schemas, with what is to be read out of them, stand in extraction_tasks.jsonl and
extraction_schemas.json. Both times the model is shown the same prompt with the schema; without the constraint the JSON is
taken out of its reply, out of a fenced block too. Answers are greedy and without thinking.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click

from qwen_edge.bench.json_score import count_fields, find_json
from qwen_edge.bench.tables import new_table
from qwen_edge.chat.coercion import fits
from qwen_edge.config import GREEDY
from qwen_edge.errors import OutputError, QwenEdgeError
from qwen_edge.model import Model, load
from qwen_edge.session import Session
from qwen_edge.typed import with_schema

_FOLDER = Path(__file__).parent
_MAX_TOKENS = 300
_N_CTX = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One text to read something out of.

    Attributes:
        schema_name: Which of the schemas.
        schema: The JSON schema itself.
        prompt: What is asked, with the text.
        expected: The right answer.
    """

    schema_name: str
    schema: dict[str, Any]
    prompt: str
    expected: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """What a model made of a task.

    Attributes:
        schema_name: Of the task.
        prompt: Of the task.
        is_constrained: The answer was held to the schema.
        text: The answer as it was written.
        value: Its JSON, None when there is none.
        is_valid: It fits the schema to the letter.
        right_fields: Fields that are as expected.
        n_fields: Fields expected or found.
    """

    schema_name: str
    prompt: str
    is_constrained: bool
    text: str
    value: Any
    is_valid: bool
    right_fields: int
    n_fields: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionQuality:
    """All tasks under one setting; shares are 0 to 1.

    Attributes:
        is_constrained: Answers were held to the schema.
        n_tasks: How many.
        valid: Share that fits the schema.
        exact: Share with every field right and no other.
        fields: Share of right fields over all tasks.
    """

    is_constrained: bool
    n_tasks: int
    valid: float
    exact: float
    fields: float


def read_tasks() -> list[Task]:
    """Return the tasks of this package."""
    schemas = json.loads((_FOLDER / "extraction_schemas.json").read_text(encoding="utf-8"))
    lines = (_FOLDER / "extraction_tasks.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        Task(
            schema_name=task["schema"],
            schema=schemas[task["schema"]],
            prompt=task["prompt"],
            expected=task["expected"],
        )
        for task in map(json.loads, lines)
    ]


def extract_all(model: Model, tasks: Iterable[Task]) -> Iterator[Extraction]:
    """Do each task without the constraint and with it; yield both answers."""
    with model.session() as session:
        for task in tasks:
            # The prompt is evaluated here, so that both find the same KV cache, to the last bit.
            _send(session, task, max_tokens=1)
            for is_constrained in (False, True):
                text = _extract(session, task) if is_constrained else _send(session, task)
                value = find_json(text)
                right_fields, n_fields = count_fields(value, task.expected)
                yield Extraction(
                    schema_name=task.schema_name,
                    prompt=task.prompt,
                    is_constrained=is_constrained,
                    text=text,
                    value=value,
                    is_valid=fits(value, task.schema),
                    right_fields=right_fields,
                    n_fields=n_fields,
                )


def _send(session: Session, task: Task, max_tokens: int = _MAX_TOKENS) -> str:
    session.messages.clear()
    prompt = with_schema(task.prompt, task.schema)
    return session.send(prompt, thinking="off", max_tokens=max_tokens, sampling=GREEDY).text


def _extract(session: Session, task: Task) -> str:
    """Return the answer under the constraint, as it was written; what was cut off is no JSON."""
    session.messages.clear()
    stream = session.extract_stream(
        task.prompt, task.schema, thinking="off", max_tokens=_MAX_TOKENS, sampling=GREEDY
    )
    for _ in stream:
        pass
    try:
        return json.dumps(stream.result, ensure_ascii=False)
    except OutputError as error:
        return error.text or ""


def extraction_quality(answers: Sequence[Extraction], *, is_constrained: bool) -> ExtractionQuality:
    """Count the answers under one setting, of which there must be some."""
    answers = [answer for answer in answers if answer.is_constrained == is_constrained]
    n_tasks = len(answers)
    return ExtractionQuality(
        is_constrained=is_constrained,
        n_tasks=n_tasks,
        valid=sum(answer.is_valid for answer in answers) / n_tasks,
        exact=sum(answer.right_fields == answer.n_fields for answer in answers) / n_tasks,
        fields=sum(answer.right_fields for answer in answers) / sum(answer.n_fields for answer in answers),
    )


def measure(
    model: Model, limit: int | None, seen: Callable[[Extraction], None] = lambda answer: None
) -> list[ExtractionQuality]:
    """Do the tasks; return their figures without and with the constraint.

    Args:
        model: Any that chats.
        limit: Most tasks; None does all.
        seen: Is told every answer.

    Raises:
        MissingExtraError: llguidance is not installed.
    """
    answers = []
    for answer in extract_all(model, read_tasks()[:limit]):
        seen(answer)
        answers.append(answer)
    return [extraction_quality(answers, is_constrained=setting) for setting in (False, True)]


def _print_table(results: Sequence[ExtractionQuality]) -> None:
    from rich.console import Console

    table = new_table("Answers", "Tasks", "Valid", "Exactly\nright", "Fields\nright")
    for result in results:
        shares = (result.valid, result.exact, result.fields)
        table.add_row(
            "held to the schema" if result.is_constrained else "free",
            str(result.n_tasks),
            *(f"{share:.3f}" for share in shares),
        )
    Console(highlight=False).print(table)


@click.command()
@click.argument("file")
@click.option("--limit", type=click.IntRange(min=1), help="Most tasks; default: all.")
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
    file: str, limit: int | None, threads: int | None, answers: IO[str] | None, output_format: str
) -> None:
    """Measure the typed answers of FILE, a GGUF file or the name of a model."""

    def write(answer: Extraction) -> None:
        if answers is not None:
            click.echo(json.dumps(dataclasses.asdict(answer), ensure_ascii=False), file=answers)

    try:
        with load(file, n_ctx=_N_CTX, n_threads=threads, prefix_cache=False) as model:
            results = measure(model, limit, write)
    except QwenEdgeError as error:
        raise click.ClickException(str(error)) from error
    if output_format == "human":
        _print_table(results)
        return
    document = {
        "schema": "qwen-edge/extraction/1",
        "file": file,
        "results": [dataclasses.asdict(result) for result in results],
    }
    click.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
