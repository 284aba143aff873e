"""Sessions that evaluate together are saved, branched and kept on disk like those alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge import LoadConfig, Model, Session, StateRebuiltWarning, load
from qwen_edge.config import GREEDY
from qwen_edge.errors import ConfigError, FormatError
from qwen_edge.native.batch import NativeBatchContext, Part
from qwen_edge.native.handles import NativeModel
from qwen_edge.native.state import save_sequence
from qwen_edge.types import Reply

SYSTEM = "And it came to pass, that the king of Israel said unto him, Go in peace. " * 16
QUESTIONS = ("What is 12 + 30?", "What is the capital of Peru?", "Translate 'dog' to German.", "Say Anna.")


def loaded(path: Path, n_sessions: int, **settings: Any) -> Model:
    return load(
        path, **{"n_ctx": 768, "n_threads": 1, "safe_kernels": False, "n_sessions": n_sessions, **settings}
    )


def ask(session: Session, question: str) -> Reply:
    return session.send(question, thinking="on", sampling=GREEDY, max_tokens=40)


def texts(reply: Reply) -> tuple[str, str]:
    return reply.thinking, reply.text


def all_at_once(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def expected(tiny_bf16: Path) -> list[tuple[str, str]]:
    """Two turns of each session alone, everything evaluated there."""
    answers = []
    with loaded(tiny_bf16, 1, prefix_cache=False) as model:
        for index, question in enumerate(QUESTIONS):
            with model.session(system=SYSTEM) as session:
                ask(session, question)
                answers.append(texts(ask(session, QUESTIONS[index - 1])))
    return answers


@pytest.mark.parametrize(("saving", "restoring"), [(4, 4), (4, 1), (1, 4), (2, 4)])
def test_saved_and_restored(
    tiny_bf16: Path, tmp_path: Path, expected: list[tuple[str, str]], saving: int, restoring: int
) -> None:
    with loaded(tiny_bf16, saving) as model:
        for index, question in enumerate(QUESTIONS):
            session = model.session(system=SYSTEM)
            ask(session, question)
            session.save(tmp_path / f"{index}.session")
            if index >= saving - 1:
                session.close()
    with loaded(tiny_bf16, restoring) as model:
        for index in (2, 0, 3, 1):  # into other places than they come from
            session = model.restore_session(tmp_path / f"{index}.session")
            assert session.rebuilt_because == ""
            reply = ask(session, QUESTIONS[index - 1])
            assert texts(reply) == expected[index]
            assert reply.stats.cached_tokens > 256
            if restoring == 1:
                session.close()


def test_saved_and_loaded_while_others_talk(
    tiny_bf16: Path, tmp_path: Path, expected: list[tuple[str, str]]
) -> None:
    found: dict[int, tuple[str, str]] = {}

    def talk(model: Model, index: int) -> None:
        session = model.session(system=SYSTEM)
        ask(session, QUESTIONS[index])
        session.save(tmp_path / f"{index}.session")
        session.close()
        with model.restore_session(tmp_path / f"{index}.session") as restored:
            found[index] = texts(ask(restored, QUESTIONS[index - 1]))

    with loaded(tiny_bf16, 4) as model:
        all_at_once([lambda i=i: talk(model, i) for i in range(4)])  # type: ignore[misc]
    assert [found[index] for index in range(4)] == expected


def test_branched_without_a_second_prefill(tiny_bf16: Path, expected: list[tuple[str, str]]) -> None:
    with loaded(tiny_bf16, 4) as model:
        sessions = [model.session(system=SYSTEM) for _ in range(2)]
        for session, question in zip(sessions, QUESTIONS, strict=False):
            ask(session, question)
        branches = [session.branch() for session in sessions]
        found: dict[int, Reply] = {}

        def go_on(place: int, session: Session, index: int) -> None:
            found[place] = ask(session, QUESTIONS[index - 1])

        both = [(0, sessions[0], 0), (1, sessions[1], 1), (2, branches[0], 0), (3, branches[1], 1)]
        all_at_once([lambda args=args: go_on(*args) for args in both])  # type: ignore[misc]
        assert [texts(found[place]) for place in range(4)] == [*expected[:2], *expected[:2]]
        for reply in found.values():
            assert reply.stats.prompt_tokens - reply.stats.cached_tokens < 80
        # A branch takes one of the places.
        with pytest.raises(ConfigError, match="all 4 sessions"):
            sessions[0].branch()
        branches[0].close()
        with sessions[1].branch() as branch:
            assert branch.messages == sessions[1].messages
        assert texts(ask(sessions[0], "Say Anna."))


def test_the_prefix_cache_goes_between_1_and_4_sessions(tiny_bf16: Path) -> None:
    answers = set()
    for n_sessions, use in ((4, "miss"), (1, "hit"), (4, "hit"), (2, "hit")):
        with loaded(tiny_bf16, n_sessions) as model, model.session(system=SYSTEM) as session:
            reply = ask(session, QUESTIONS[0])
            assert (reply.stats.prefix_cache, reply.stats.cached_tokens > 256) == (use, use == "hit")
            answers.add(texts(reply))
    assert len(answers) == 1


def test_prewarmed_in_a_place_of_its_own(tiny_bf16: Path) -> None:
    with loaded(tiny_bf16, 2) as model:
        sessions = [model.session(), model.session()]
        with pytest.raises(ConfigError, match="all 2 sessions"):
            model.prewarm(system=SYSTEM)
        sessions[0].close()
        assert model.prewarm(system=SYSTEM).status == "stored"
        assert model.prewarm(system=SYSTEM).status == "present"


def test_damaged_states_are_refused_and_leave_the_others_alone(tiny_bf16: Path) -> None:
    with loaded(tiny_bf16, 4) as model:
        tokens = model.engine.tokenize(SYSTEM)[:40]
        context, other = model.engine.new_context(), model.engine.new_context()
        other.append(tokens)
        untouched, state = other.logits(), other.save_state()
        layout_end = 16 + 12 * len(tokens) + 8  # head, cells, and what says how the rest is laid out
        random = np.random.default_rng(1)
        cases = [(state[:n], 40) for n in (0, 3, 16, 500, len(state) - 1)] + [(state, 39), (state, 2000)]
        cases += [(np.append(state, np.uint8(0)), 40), (np.append(state, np.zeros(12, np.uint8)), 40)]
        for index in (*range(16), *random.integers(16, layout_end, 60)):
            flipped = state.copy()
            flipped[index] ^= random.integers(1, 256)
            cases.append((flipped, 40))
        cases += [(random.integers(0, 256, len(state), dtype=np.uint8), 40)]
        for data, n_tokens in cases:
            with pytest.raises(FormatError, match="a saved KV cache does not fit this context"):
                context.load_state(data, n_tokens)
            assert context.n_past == 0
        assert np.array_equal(other.save_state(), state)
        for place in (context, other):
            place.load_state(state, 40)
            place.rewind(39)
            place.append(tokens[39:])
            assert np.allclose(place.logits(), untouched, atol=0.05)


def test_a_state_is_the_same_bytes_from_every_place(tiny_bf16: Path) -> None:
    states = []
    for n_sessions in (1, 3):
        with loaded(tiny_bf16, n_sessions) as model:
            contexts = [model.engine.new_context() for _ in range(n_sessions)]
            for context in contexts:
                context.append(list(range(1, 60)))
                states.append(context.save_state())
    assert len(states) == 4
    assert all(np.array_equal(state, states[0]) for state in states)


def test_a_prompt_beside_a_decode_step_is_the_same_to_the_bit(tiny_bf16: Path) -> None:
    states = []
    model = NativeModel(tiny_bf16)
    for beside in ([], [Part(0, 30, [7])], [Part(0, 30, [7]), Part(2, 0, list(range(5, 24)))]):
        context = NativeBatchContext(model, LoadConfig(n_ctx=256), 1, 3)
        context.evaluate([Part(0, 0, list(range(1, 31)))])
        context.evaluate([Part(1, 0, list(range(100, 140)))])
        context.evaluate([Part(1, 40, list(range(140, 160))), *beside])
        states.append(save_sequence(context, 1, 60))
        context.close()
    model.close()
    assert all(np.array_equal(state, states[0]) for state in states)


def test_a_longer_state_than_the_place_holds_is_evaluated_again(tiny_bf16: Path, tmp_path: Path) -> None:
    with loaded(tiny_bf16, 1, n_ctx=768) as model, model.session(system=SYSTEM) as session:
        ask(session, QUESTIONS[0])
        session.save(tmp_path / "a.session")
    with loaded(tiny_bf16, 2, n_ctx=256) as model:
        with pytest.warns(StateRebuiltWarning, match="the context 256"):
            restored = model.restore_session(tmp_path / "a.session")
        assert len(restored.messages) == 3
