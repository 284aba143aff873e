"""Whether the answers stay the same: greedy text with and without each thing that saves work.

python -m qwen_edge.bench.same_answers FILE [--threads N] [--prompts N] [--format json]

A prompt is a conversation of two turns behind a system prompt that is long enough for the prefix cache. Each way answers
all of them, and is compared token for token with the way that does without::

    every turn evaluated anew       a new session for each turn
      KV reuse over turns           one session for both turns, everything else switched off
        all others                  the same, and one thing more

Products of matrices of another shape are summed in another order, so that logits differ in their last digits where a
token was evaluated in other company; where two tokens are nearly equally likely, the choice may then fall otherwise. The
gap in logits between the two says how near they were.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import qwen_edge
from qwen_edge import device, hub
from qwen_edge.bench.answer_comparison import Answer, Comparison, compare
from qwen_edge.bench.tables import new_table
from qwen_edge.bench.ten_prompts import TEN_PROMPTS
from qwen_edge.chat.template import ThinkingSupport
from qwen_edge.config import GREEDY, ThinkingConfig
from qwen_edge.model import Model
from qwen_edge.native import library
from qwen_edge.prefix_cache import MIN_TOKENS
from qwen_edge.session import Session

_N_CTX = 1024
_FIRST_TOKENS, _SECOND_TOKENS = 8, 56
# The other run's token is nearly always among these.
_ALTERNATIVES = 10
_RULE = "Answer politely, say where a figure comes from, and never promise what the shop cannot keep. "
_PROMPTS = (
    *(prompt.text for prompt in TEN_PROMPTS),
    "Traduce al español: 'The train leaves at nine and arrives before noon.'",
    "日本語で自己紹介をしてください。",
    "Напиши короткое стихотворение о море.",
    "اكتب جملتين عن أهمية القراءة.",
    "Write a SQL query that counts the orders of each customer in 2024.",
    "Schreibe eine kurze E-Mail, in der du einen Termin absagst.",
    "Explain in three steps how to boil an egg.",
    "Write a C function that reverses a string in place.",
    "List five animals that live in the desert, with one fact about each.",
    "Summarise the story of Little Red Riding Hood in two sentences.",
)
_ANEW, _ALONE = "every turn evaluated anew", "KV reuse over turns"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all ways have in common.

    Attributes:
        file: A GGUF file.
        n_threads: CPU threads; None takes the physical cores.
        conversations: What is said in the first and in the second turn.
        folder: For saved sessions.
    """

    file: Path
    n_threads: int | None
    conversations: tuple[tuple[str, str], ...]
    folder: Path

    def load(self, **settings: Any) -> Model:
        """Load the model; the prefix cache is off unless it is asked for."""
        return qwen_edge.load(
            self.file, **{"n_ctx": _N_CTX, "n_threads": self.n_threads, "prefix_cache": False, **settings}
        )


Way = Callable[[Bench], list[Answer]]


def _system_prompt(model: Model) -> str:
    """Return a system prompt that the prefix cache keeps."""
    count = 1
    while len(model.engine.tokenize(_RULE * count)) <= MIN_TOKENS:
        count += 1
    return _RULE * count


def _session(model: Model, **settings: Any) -> Session:
    return model.session(system=_system_prompt(model), **settings)


def _say(session: Session, text: str, max_tokens: int) -> Answer:
    switched = session._template.thinking is ThinkingSupport.SWITCHED
    reply = session.send(
        text,
        thinking=ThinkingConfig(mode="off" if switched else "auto", stop_loops=False),
        max_tokens=max_tokens,
        sampling=GREEDY,
        logprobs=_ALTERNATIVES,
    )
    return Answer(reply.logprobs or (), reply.stats.prompt_tokens - reply.stats.cached_tokens)


def _both_turns(session: Session, conversation: tuple[str, str]) -> Answer:
    first, second = conversation
    return _say(session, first, _FIRST_TOKENS) + _say(session, second, _SECOND_TOKENS)


def anew(bench: Bench) -> list[Answer]:
    """Answer each turn in a new session that has only the text of the first turn."""
    answers = []
    with bench.load() as model:
        for first, second in bench.conversations:
            with _session(model) as session, _session(model) as other:
                begun = _say(session, first, _FIRST_TOKENS)
                other.messages[:] = session.messages
                answers.append(begun + _say(other, second, _SECOND_TOKENS))
    return answers


def in_new_sessions(*, session_settings: dict[str, Any] | None = None, **settings: Any) -> Way:
    """Return the way that takes a new session for each conversation."""

    def way(bench: Bench) -> list[Answer]:
        answers = []
        with bench.load(**settings) as model:
            for conversation in bench.conversations:
                with _session(model, **(session_settings or {})) as session:
                    answers.append(_both_turns(session, conversation))
        return answers

    return way


def in_one_session(bench: Bench) -> list[Answer]:
    """Have all conversations in one session, each taken back before the next."""
    answers = []
    with bench.load() as model, _session(model) as session:
        for conversation in bench.conversations:
            answers.append(_both_turns(session, conversation))
            session.undo()
            session.undo()
    return answers


def from_disk(bench: Bench) -> list[Answer]:
    """Take the prefix from the cache on disk, in the model that put it there or in one loaded later."""
    answers = []
    with bench.load(prefix_cache=True) as model:
        status = model.prewarm(system=_system_prompt(model)).status
        assert status in ("stored", "present"), f"Bug: the prefix is not on disk: {status}"
        for conversation in bench.conversations:
            with _session(model) as session:
                answers.append(_both_turns(session, conversation))
    return answers


def together(count: int) -> Way:
    """Return the way that has some conversations at once, in one batch."""

    def way(bench: Bench) -> list[Answer]:
        with bench.load(n_sessions=max(2, count)) as model, ThreadPoolExecutor(count) as threads:

            def have(conversation: tuple[str, str]) -> Answer:
                with _session(model) as session:
                    return _both_turns(session, conversation)

            return list(threads.map(have, bench.conversations))

    return way


def restored(*, n_sessions: int = 1) -> Way:
    """Return the way that saves after the first turn, and goes on in a model loaded later."""

    def way(bench: Bench) -> list[Answer]:
        begun = []
        files = [bench.folder / f"{number}.session" for number in range(len(bench.conversations))]
        with bench.load() as model:
            for (first, _), file in zip(bench.conversations, files, strict=True):
                with _session(model) as session:
                    begun.append(_say(session, first, _FIRST_TOKENS))
                    session.save(file)
        answers = []
        with bench.load(n_sessions=n_sessions) as model:
            for before, (_, second), file in zip(begun, bench.conversations, files, strict=True):
                with model.restore_session(file) as session:
                    assert not session.rebuilt_because, f"Bug: not restored: {session.rebuilt_because}"
                    answers.append(before + _say(session, second, _SECOND_TOKENS))
        return answers

    return way


def branched(*, n_sessions: int = 1) -> Way:
    """Return the way that branches after the first turn and goes on in the branch."""

    def way(bench: Bench) -> list[Answer]:
        answers = []
        with bench.load(n_sessions=n_sessions) as model:
            for first, second in bench.conversations:
                with _session(model) as session:
                    begun = _say(session, first, _FIRST_TOKENS)
                    with session.branch() as branch:
                        answers.append(begun + _say(branch, second, _SECOND_TOKENS))
        return answers

    return way


WAYS: tuple[tuple[str, str, Way], ...] = (
    (_ALONE, _ANEW, in_new_sessions()),
    ("prefix in memory: one session, other questions", _ALONE, in_one_session),
    ("prefix from disk", _ALONE, from_disk),
    ("prefix from disk, model loaded again", _ALONE, from_disk),
    *((f"batching, {count} at once", _ALONE, together(count)) for count in (1, 2, 4, 8)),
    ("saved, restored in a model loaded again", _ALONE, restored()),
    ("saved alone, restored beside others", _ALONE, restored(n_sessions=4)),
    ("branch", _ALONE, branched()),
    ("branch of a batched session", _ALONE, branched(n_sessions=4)),
    ("on_overflow set, nothing dropped", _ALONE, in_new_sessions(session_settings={"on_overflow": "drop_oldest"})),
    ("prompts in chunks of 64", _ALONE, in_new_sessions(n_batch=64)),
)  # fmt: skip


def measure(
    file: Path,
    n_threads: int | None,
    n_prompts: int,
    announce: Callable[[str], None] = lambda way: None,
) -> list[Comparison]:
    """Answer all prompts in all ways.

    Args:
        file: A GGUF file.
        n_threads: CPU threads; None takes the physical cores.
        n_prompts: How many conversations, at most as many as there are prompts.
        announce: Is told each way before it begins.
    """
    # A second turn that has nothing to do with the first.
    half = len(_PROMPTS) // 2
    conversations = tuple(zip(_PROMPTS, (*_PROMPTS[half:], *_PROMPTS[:half]), strict=True))[:n_prompts]
    comparisons = []
    with tempfile.TemporaryDirectory() as folder, _cache_in(Path(folder)):
        bench = Bench(file=file, n_threads=n_threads, conversations=conversations, folder=Path(folder))
        announce(_ANEW)
        answers = {_ANEW: anew(bench)}
        for name, against, way in WAYS:
            announce(name)
            answers[name] = way(bench)
            comparisons.append(compare(name, against, answers[against], answers[name]))
    return comparisons


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Have caches of this process in a folder: what is on disk has to come from this build and this run."""
    before = os.environ.get("QWEN_EDGE_CACHE")
    os.environ["QWEN_EDGE_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["QWEN_EDGE_CACHE"]
        else:
            os.environ["QWEN_EDGE_CACHE"] = before


def _print_table(comparisons: list[Comparison]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    table = new_table(
        "",
        "Prompt tokens\nevaluated",
        "Same\nanswers",
        "First\ndifference",
        "Largest\ngap",
        "Largest\nchange",
    )
    for each in comparisons:
        first = min((difference.position for difference in each.differences), default=None)
        table.add_row(
            each.way,
            str(each.evaluated_tokens),
            f"{each.n_equal}/{each.n_prompts}",
            "-" if first is None else str(first),
            "-" if each.largest_gap is None else f"{each.largest_gap:.3f}",
            f"{each.largest_change:.3f}" if each.largest_change else "0",
        )
    console.print(table)
    for each in comparisons:
        for difference in each.differences:
            one, other = (_gap(gap) for gap in difference.gaps)
            console.print(
                f"{each.way}: prompt {difference.prompt}, token {difference.position}: "
                f"{difference.texts[1]!r} for {difference.texts[0]!r}, gap {one} without, {other} with",
                markup=False,
            )
    console.print(
        f"{comparisons[0].way!r} is compared with {_ANEW!r}, the others with it. Gap: between the logits of the two tokens, "
        "in each run's own. Change: of a token's log-probability, before answers part.",
        markup=False,
    )


def _gap(gap: float | None) -> str:
    return "unknown" if gap is None else f"{gap:.4f}"


@click.command()
@click.argument("file")
@click.option("--threads", type=click.IntRange(min=1), help="Default: the physical cores.")
@click.option(
    "--prompts", type=click.IntRange(min=1, max=len(_PROMPTS)), default=len(_PROMPTS), show_default=True
)
@click.option(
    "--format", "output_format", type=click.Choice(["human", "json"]), default="human", show_default=True
)
def main(file: str, threads: int | None, prompts: int, output_format: str) -> None:
    """Compare greedy answers of FILE with and without each thing that saves work."""
    path = hub.locate(file)
    comparisons = measure(path, threads, prompts, lambda way: click.echo(way, err=True))
    if output_format == "human":
        _print_table(comparisons)
        return
    document = {
        "schema": "qwen-edge/same-answers/1",
        "machine": {**device.describe_machine(), "native": library.build_facts()},
        "file": file,
        "threads": threads or device.usable_cores(),
        "prompts": list(_PROMPTS[:prompts]),
        "ways": [each.to_dict() for each in comparisons],
    }
    click.echo(json.dumps(document, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
