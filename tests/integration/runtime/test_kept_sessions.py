"""Branches, saved sessions and the prefix cache on the tiny model: the same text as without, to the token."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[3]))  # for tests.adapters and tests.synthetic

from qwen_edge import Model, Session, StateRebuiltWarning, load, state_file
from qwen_edge.config import GREEDY
from qwen_edge.convert import convert_adapter
from qwen_edge.errors import FormatError
from qwen_edge.native import library
from qwen_edge.paths import cache_root
from qwen_edge.types import Reply
from tests.adapters import write_adapter
from tests.synthetic import TINY_QWEN3

SETTINGS: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1, "safe_kernels": False}
SYSTEM = "And it came to pass, that the king of Israel said unto him, Go in peace. " * 16
TOOL = {"name": "add", "description": "Add.", "parameters": {"type": "object", "properties": {}}}
QUESTIONS = ("What is 12 + 30?", "What is the capital of Peru?", "Translate 'dog' to German.")


def ask(session: Session, questions: tuple[str, ...] = QUESTIONS) -> list[tuple[str, str]]:
    """Return what the model thinks and says, greedily."""
    replies = [
        session.send(question, thinking=thinking, sampling=GREEDY, max_tokens=60)
        for thinking in ("off", "on")
        for question in questions
    ]
    return [(reply.thinking, reply.text) for reply in replies]


@pytest.fixture(scope="module")
def expected(tiny_path: Path) -> list[tuple[str, str]]:
    """The answers of a session that evaluates every prompt from its first token."""
    answers = []
    with load(tiny_path, prefix_cache=False, **SETTINGS) as model, model.session(system=SYSTEM) as session:
        for thinking in ("off", "on"):
            for question in QUESTIONS:
                session._idle_cache().context.rewind(0)
                reply = session.send(question, thinking=thinking, sampling=GREEDY, max_tokens=60)  # type: ignore[arg-type]
                assert reply.stats.cached_tokens == 0
                answers.append((reply.thinking, reply.text))
    return answers


def test_kv_reuse_says_the_same(tiny_path: Path, expected: list[tuple[str, str]]) -> None:
    with load(tiny_path, prefix_cache=False, **SETTINGS) as model, model.session(system=SYSTEM) as session:
        assert ask(session) == expected


def test_the_prefix_cache_says_the_same(tiny_path: Path, expected: list[tuple[str, str]]) -> None:
    for use in ("miss", "hit", "hit"):
        with load(tiny_path, **SETTINGS) as model, model.session(system=SYSTEM) as session:
            first = session.send(QUESTIONS[0], thinking="off", sampling=GREEDY, max_tokens=60)
            assert (first.stats.prefix_cache, first.stats.cached_tokens > 256) == (use, use == "hit")
            session.undo()
            assert ask(session) == expected


def test_a_branch_says_the_same_and_evaluates_nothing_again(
    tiny_path: Path, expected: list[tuple[str, str]]
) -> None:
    with load(tiny_path, **SETTINGS) as model, model.session(system=SYSTEM) as session:
        ask(session, QUESTIONS[:1])
        session.undo()  # the reply with thinking
        with session.branch() as branch:
            reply = branch.send(QUESTIONS[1], thinking="off", sampling=GREEDY, max_tokens=60)
            assert (reply.thinking, reply.text) == expected[1]
            assert reply.stats.prompt_tokens - reply.stats.cached_tokens < 60
        reply = session.send(QUESTIONS[1], thinking="off", sampling=GREEDY, max_tokens=60)
        assert (reply.thinking, reply.text) == expected[1]


def test_a_restored_session_says_the_same(tiny_path: Path, tmp_path: Path) -> None:
    check_restored_session(tiny_path, tmp_path, {})


@pytest.mark.parametrize("settings", [
    {"flash_attention": "on"},
    {"flash_attention": "on", "kv_type": "q8_0"},
    {"kv_type": "f32"},
], ids=str)  # fmt: skip
def test_a_session_restored_with_settings_says_the_same(
    tiny_bf16: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    check_restored_session(tiny_bf16, tmp_path, settings)


def check_restored_session(path: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    def rest(session: Session) -> list[Reply]:
        return [session.send(text, thinking="on", sampling=GREEDY, max_tokens=60) for text in QUESTIONS[1:]]

    with load(path, **SETTINGS, **settings) as model:
        session = model.session(system=SYSTEM)
        session.send(QUESTIONS[0], thinking="off", sampling=GREEDY)
        session.save(tmp_path / "a.session")
        uninterrupted = [(reply.thinking, reply.text) for reply in rest(session)]
    with load(path, **SETTINGS, **settings) as model:
        restored = model.restore_session(tmp_path / "a.session")
        replies = rest(restored)
    assert [(reply.thinking, reply.text) for reply in replies] == uninterrupted
    assert restored.rebuilt_because == ""
    assert replies[0].stats.cached_tokens > 256


def test_logits_behind_a_loaded_state_are_equal_to_the_bit(tiny_path: Path) -> None:
    check_loaded_state(tiny_path, {})


def test_logits_behind_a_state_of_flash_attention_are_equal_to_the_bit(tiny_bf16: Path) -> None:
    check_loaded_state(tiny_bf16, {"flash_attention": "on"})


def check_loaded_state(path: Path, settings: dict[str, Any]) -> None:
    with load(path, **SETTINGS, **settings) as model:
        tokens = model.engine.tokenize(SYSTEM)[:300]
        context, other = model.engine.new_context(), model.engine.new_context()
        context.append(tokens[:280])
        state = context.save_state()
        context.append(tokens[280:])
        other.append(tokens[7:20])
        other.load_state(state, 280)
        assert other.n_past == 280
        other.append(tokens[280:])
        assert np.array_equal(context.logits(), other.logits())


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    made = write_adapter(folder / "peft", TINY_QWEN3, seed=1, strength=0.05, target_modules=["q_proj"])
    convert_adapter(made.folder, TINY_QWEN3, folder / "a.gguf")
    return folder / "a.gguf"


@pytest.fixture
def weights(tiny_bf16: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copy2(tiny_bf16, tmp_path / "model.gguf"))


class Run:
    """Ask one question in a newly loaded model."""

    def __init__(self, weights: Path, adapter: Path, patch: pytest.MonkeyPatch) -> None:
        self.weights, self.adapter, self.patch = weights, adapter, patch

    def __call__(self, *, system: str = SYSTEM, tools: Any = (TOOL,), **changes: Any) -> str:
        adapters = [(self.adapter, scale) for scale in changes.pop("scales", ())]
        with (
            load(self.weights, **{**SETTINGS, "adapters": adapters, **changes}) as model,
            model.session(system=system, tools=tools) as session,
        ):
            return session.send("Say Anna.", thinking="off", sampling=GREEDY, max_tokens=4).stats.prefix_cache


@pytest.fixture
def run(weights: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    run = Run(weights, adapter, monkeypatch)
    assert (run(), run()) == ("miss", "hit")
    return run


def changed_weights(run: Run) -> str:
    data = bytearray(run.weights.read_bytes())
    data[-1] ^= 1  # in the last tensor
    run.weights.write_bytes(data)
    return run()


def changed_template(run: Run) -> str:
    """Of the same length and meaning."""
    data = run.weights.read_bytes()
    assert data.count(b"add_generation_prompt %}") == 1
    run.weights.write_bytes(data.replace(b"add_generation_prompt %}", b"add_generation_prompt%} "))
    return run()


def other_library(run: Run) -> str:
    run.patch.setattr(library, "library_fingerprint", lambda: "other")
    return run()


def other_instruction_sets(run: Run) -> str:
    run.patch.setattr(library, "system_info", lambda: "other")
    return run()


def other_format(run: Run) -> str:
    run.patch.setattr(state_file, "VERSION", state_file.VERSION + 1)
    return run()


def damaged(run: Run) -> str:
    (entry,) = (cache_root() / "prefixes").iterdir()
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes(data)
    return run()


def cut_off(run: Run) -> str:
    (entry,) = (cache_root() / "prefixes").iterdir()
    os.truncate(entry, entry.stat().st_size - 1)
    return run()


@pytest.mark.parametrize("change", [
    changed_weights,
    changed_template,
    other_library,
    other_instruction_sets,
    other_format,
    damaged,
    cut_off,
    lambda run: run(kv_type="f32"),
    lambda run: run(flash_attention="on"),
    lambda run: run(safe_kernels=True),
    lambda run: run(scales=[1.0]),
    lambda run: (run(scales=[1.0]), run(scales=[0.5]))[1],
    lambda run: (run(scales=[1.0]), run(scales=[1.0, 1.0]))[1],
    lambda run: run(system=SYSTEM + "Amen."),
    lambda run: run(tools=({**TOOL, "name": "sum"},)),
], ids=[
    "weights", "template", "library", "instruction sets", "format", "damaged", "cut off", "kv_type", "flash_attention",
    "kernels", "adapter", "adapter scale", "second adapter", "system", "tools",
])  # fmt: skip
def test_whatever_changes_is_a_miss(run: Run, change: Callable[[Run], str]) -> None:
    assert change(run) == "miss"


def test_what_does_not_matter_is_a_hit(run: Run, tmp_path: Path) -> None:
    assert run(n_ctx=2048, n_batch=64, load_mode="mmap") == "hit"


def test_a_session_saved_with_other_settings_is_evaluated_again(tiny_bf16: Path, tmp_path: Path) -> None:
    with load(tiny_bf16, **SETTINGS) as model:
        session = model.session()
        session.send("Say Anna.", thinking="off", sampling=GREEDY)
        session.save(tmp_path / "a.session")
    with load(tiny_bf16, kv_type="f32", **SETTINGS) as model:
        with pytest.warns(StateRebuiltWarning, match="another kv_type"):
            restored = model.restore_session(tmp_path / "a.session")
        assert restored.rebuilt_because == "kv_type"
        reply = restored.send("What is the capital of Greece?", thinking="off", sampling=GREEDY)
        assert (reply.text, reply.stats.cached_tokens) == ("Athens.", 0)


def test_damaged_states_are_refused_and_leave_the_context_empty(tiny_bf16: Path) -> None:
    """llama.cpp would end the process at some of these."""
    with load(tiny_bf16, **SETTINGS) as model:
        tokens = model.engine.tokenize(SYSTEM)[:40]
        context = model.engine.new_context()
        context.append(tokens)
        expected, state = context.logits(), context.save_state()
        layout_end = 16 + 12 * len(tokens) + 8  # head, cells, and what says how the rest is laid out
        random = np.random.default_rng(1)
        cases = [(state[:n], 40) for n in (0, 3, 16, 500, len(state) - 1)] + [(state, 39), (state, 2000)]
        cases += [(np.append(state, np.uint8(0)), 40)]
        for index in (*range(16), *random.integers(16, layout_end, 60)):
            flipped = state.copy()
            flipped[index] ^= random.integers(1, 256)
            cases.append((flipped, 40))
        cases += [(random.integers(0, 256, len(state), dtype=np.uint8), 40)]
        for data, n_tokens in cases:
            with pytest.raises(FormatError, match="a saved KV cache does not fit this context"):
                context.load_state(data, n_tokens)
            assert context.n_past == 0
        context.load_state(state, 40)
        context.rewind(39)
        context.append(tokens[39:])
        assert np.allclose(context.logits(), expected, atol=0.05)


def test_states_of_other_settings_are_refused(tiny_bf16: Path) -> None:
    with load(tiny_bf16, **SETTINGS) as model:
        context = model.engine.new_context()
        context.append([1, 2, 3])
        state = context.save_state()
    for settings in ({"kv_type": "f32"}, {"flash_attention": "on"}):
        with load(tiny_bf16, **SETTINGS, **settings) as model:  # type: ignore[arg-type]
            context = model.engine.new_context()
            with pytest.raises(FormatError, match="does not fit"):
                context.load_state(state, 3)
            context.append([1, 2, 3])
            assert context.n_past == 3


def test_an_empty_context_can_be_saved(tiny_model: Model) -> None:
    with tiny_model.session() as session, session.branch() as branch:
        assert branch.send("Say Anna.", thinking="off", sampling=GREEDY).text == "Anna"


def test_two_processes_at_once_on_one_entry(tiny_path: Path) -> None:
    code = (
        "import sys, qwen_edge\n"
        "from qwen_edge.config import GREEDY\n"
        "for _ in range(3):\n"
        "    with qwen_edge.load(sys.argv[1], n_ctx=1024, n_threads=1, safe_kernels=False) as model:\n"
        "        session = model.session(system=sys.argv[2])\n"
        "        reply = session.send('Say Anna.', thinking='off', sampling=GREEDY)\n"
        "        assert reply.text == 'Anna', reply\n"
        "print(reply.stats.prefix_cache)\n"
    )
    command = [sys.executable, "-c", code, str(tiny_path), SYSTEM]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["hit", "hit"]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(list((cache_root() / "prefixes").iterdir())) == 1


def test_overflow_with_summaries_goes_on(tiny_path: Path) -> None:
    dropped: list[Any] = []
    with load(tiny_path, **{**SETTINGS, "n_ctx": 256}) as model:
        session = model.session(system="Be brief.", on_overflow="summarise", on_drop=dropped.append)
        for _ in range(12):
            assert session.send("What is the capital of Greece?", thinking="off", sampling=GREEDY).text
        assert session.system == "Be brief."
    assert dropped
