from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge import state_file
from qwen_edge.config import LoadConfig
from qwen_edge.engines.base import Engine
from qwen_edge.engines.fake import TEMPLATE, FakeContext, FakeEngine
from qwen_edge.errors import ConfigError, FormatError
from qwen_edge.model import Model
from qwen_edge.paths import cache_root
from qwen_edge.prefix_cache import PrefixCache
from qwen_edge.types import GenerationStats, Message

SYSTEM = "You know the opening hours of every shop in town. " * 8  # the fake engine's tokens are bytes
TOOL = {"name": "add", "description": "Add two numbers.", "parameters": {"type": "object", "properties": {}}}
TOKENS = list(range(300))
STATE = np.arange(1000, dtype=np.uint8)


def ask(engine: FakeEngine | None = None, *, system: str = SYSTEM, tools: Any = (TOOL,)) -> GenerationStats:
    """Have a new process, as it were, answer a first question."""
    with Model(engine or FakeEngine("ok")) as model, model.session(system=system, tools=tools) as session:
        reply = session.send("Hi")
    assert reply.text == "ok"
    return reply.stats


def entries() -> list[Path]:
    return sorted((cache_root() / "prefixes").iterdir())


def a_cache(folder: Path, **settings: Any) -> PrefixCache:
    return PrefixCache(folder, lambda: {"weights": "a"}, **settings)


def test_a_second_model_finds_what_the_first_evaluated() -> None:
    first = ask()
    assert (first.prefix_cache, first.cached_tokens, first.prefix_saved_s) == ("miss", 0, 0.0)
    engine = FakeEngine("ok")
    second = ask(engine)
    assert second.prefix_cache == "hit"
    assert second.cached_tokens > len(SYSTEM)
    assert second.prefix_saved_s != 0.0
    new = second.prompt_tokens - second.cached_tokens
    assert engine.contexts[0].evaluated_tokens == new + second.generated_tokens - 1
    assert len(entries()) == 1


def test_the_first_user_text_does_not_matter() -> None:
    for text in ("Hi", "\n\nHi", " ", "ü"):
        with Model(FakeEngine("ok")) as model, model.session(system=SYSTEM) as session:
            session.send(text)
    assert len(entries()) == 1


def test_later_turns_find_it_in_memory() -> None:
    with Model(FakeEngine("ok")) as model, model.session(system=SYSTEM) as session:
        uses = [session.send("Hi").stats.prefix_cache for _ in range(3)]
    assert uses == ["miss", "memory", "memory"]


def test_short_prefixes_are_not_kept() -> None:
    assert ask(system="Be brief.", tools=()).prefix_cache == "short"
    assert not (cache_root() / "prefixes").exists()


def other_state_magic() -> FakeEngine:
    engine = FakeEngine("ok")
    engine.state_magic = 2
    return engine


@pytest.mark.parametrize("change", [
    lambda: ask(system=SYSTEM + "!"),
    lambda: ask(system="!" + SYSTEM),
    lambda: ask(tools=()),
    lambda: ask(tools=({**TOOL, "name": "sum"},)),
    lambda: ask(FakeEngine("ok", chat_template=TEMPLATE + "{# other #}")),
    lambda: ask(other_state_magic()),
], ids=["system text", "system beginning", "no tools", "other tool", "template", "engine"])  # fmt: skip
def test_what_has_changed_is_a_miss(change: Callable[[], GenerationStats]) -> None:
    ask()
    assert change().prefix_cache == "miss"
    assert change().prefix_cache == "hit"
    assert ask().prefix_cache == "hit"


def test_another_format_version_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    ask()
    monkeypatch.setattr(state_file, "VERSION", 2)
    assert ask().prefix_cache == "miss"


@pytest.mark.parametrize("damage", [
    lambda data: data[:-1],
    lambda data: b"",
    lambda data: data + b"x",
    lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    lambda data: bytes([data[0] ^ 1]) + data[1:],
    lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
], ids=["cut off", "empty", "longer", "state", "magic", "header"])  # fmt: skip
def test_a_damaged_entry_is_removed_and_a_miss(damage: Callable[[bytes], bytes]) -> None:
    ask()
    (entry,) = entries()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert ask().prefix_cache == "miss"
    assert ask().prefix_cache == "hit"
    assert entries() == [entry]


def test_an_entry_that_the_engine_refuses_is_removed_and_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    ask()

    def refuse(context: FakeContext, data: Any, n_tokens: int) -> None:
        context.rewind(0)
        raise FormatError("no")

    with monkeypatch.context() as patch:
        patch.setattr(FakeContext, "load_state", refuse)
        assert ask().prefix_cache == "miss"
    assert ask().prefix_cache == "hit"


def test_an_entry_under_a_foreign_name_is_not_used(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    cache.store(TOKENS, STATE, 1.0)
    cache.path_of(TOKENS).rename(cache.path_of(TOKENS[1:]))
    assert cache.load(TOKENS[1:]) is None
    assert list(tmp_path.iterdir()) == []


def test_the_length_of_the_context_does_not_matter() -> None:
    ask()
    with Model(FakeEngine("ok", config=LoadConfig(n_ctx=600))) as model:
        assert model.session(system=SYSTEM, tools=[TOOL]).send("Hi").stats.prefix_cache == "hit"


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(FakeEngine("ok", config=LoadConfig(prefix_cache=False))).prefix_cache == "off"
    monkeypatch.setenv("QWEN_EDGE_PREFIX_CACHE_BYTES", "0")
    assert ask().prefix_cache == "off"
    with Model(FakeEngine("ok")) as model:
        assert model.prewarm(system=SYSTEM).status == "off"
    assert not (cache_root() / "prefixes").exists()


@pytest.mark.parametrize("value", ["many", "-1", "1.5"])
def test_a_limit_that_is_no_number_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_EDGE_PREFIX_CACHE_BYTES", value)
    with pytest.raises(ConfigError, match="QWEN_EDGE_PREFIX_CACHE_BYTES"):
        Model(FakeEngine("ok"))


def test_an_engine_that_saves_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "state_identity", Engine.state_identity)
    assert ask().prefix_cache == "off"


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    one = a_cache(tmp_path)
    one.store(TOKENS, STATE, 1.0)
    cache = a_cache(tmp_path, limit_bytes=3 * one.size_bytes() + 100)
    lists = [TOKENS, TOKENS[1:], TOKENS[2:], TOKENS[3:]]
    for age, tokens in enumerate(lists[1:3]):
        cache.store(tokens, STATE, 1.0)
        os.utime(cache.path_of(tokens), ns=(0, age))
    assert cache.load(TOKENS) is not None  # used just now: not the one to go
    cache.store(lists[3], STATE, 1.0)
    assert [cache.load(tokens) is not None for tokens in lists] == [True, False, True, True]
    assert cache.size_bytes() <= cache.limit_bytes


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    cache = a_cache(tmp_path, limit_bytes=500)
    assert not cache.store(TOKENS, STATE, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_only_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cache_root().mkdir(parents=True)
    (cache_root() / "prefixes").write_text("a file stands where the folder should")
    assert [ask().prefix_cache for _ in range(2)] == ["miss", "miss"]
    with Model(FakeEngine("ok")) as model:
        assert model.prewarm(system=SYSTEM).status == "failed"


def test_the_folder_is_for_its_owner_only() -> None:
    ask()
    assert (cache_root() / "prefixes").stat().st_mode & 0o077 == 0


def test_prewarm() -> None:
    with Model(FakeEngine("ok")) as model:
        first = model.prewarm(system=SYSTEM, tools=[TOOL])
        assert (first.status, model.prewarm(system=SYSTEM, tools=[TOOL]).status) == ("stored", "present")
        assert first.prefix_tokens > len(SYSTEM)
        assert model.prewarm(system="Be brief.").status == "short"
    assert ask().prefix_cache == "hit"


def test_a_marked_conversation_is_found_by_one_that_marks_the_same() -> None:
    document = [Message("user", f"A document: {SYSTEM}"), Message("assistant", "I have read it.")]

    def ask_about_it(question: str, *, marks: bool = True) -> GenerationStats:
        with Model(FakeEngine("ok")) as model, model.session(system=SYSTEM) as session:
            session.messages += document
            if marks:
                session.mark_prefix()
            return session.send(question).stats

    assert ask_about_it("Who signed it?").prefix_cache == "miss"
    again = ask_about_it("When?")
    assert (again.prefix_cache, again.cached_tokens > 2 * len(SYSTEM)) == ("hit", True)
    unmarked = ask_about_it("Why?", marks=False)
    assert unmarked.prefix_cache == "miss"  # the system prompt alone is not there yet
    # Now it is: a document that is not there continues from it, and is kept as well.
    document[0] = Message("user", f"Another document: {SYSTEM}")
    other = ask_about_it("Who?")
    assert (other.prefix_cache, len(SYSTEM) < other.cached_tokens < 2 * len(SYSTEM)) == ("hit", True)
    assert ask_about_it("Who?").cached_tokens > 2 * len(SYSTEM)


def test_cancelling_while_the_prefix_is_evaluated_stores_nothing() -> None:
    engine = FakeEngine("ok", config=LoadConfig(n_batch=64))
    with Model(engine) as model, model.session(system=SYSTEM) as session:
        engine.on_append = lambda tokens: session.cancel()
        assert session.send("Hi").finish_reason == "cancelled"
        engine.on_append = lambda tokens: None
        assert session.send("Hi").text == "ok"


WRITER = """
import sys, numpy as np
from pathlib import Path
from qwen_edge.prefix_cache import PrefixCache
cache = PrefixCache(Path(sys.argv[1]), lambda: {"weights": "a"})
tokens, state = list(range(300)), np.arange(1 << 20, dtype=np.uint8)
"""


def test_processes_on_one_entry_at_once(tmp_path: Path) -> None:
    """Each writes, removes and reads the same entry many times: what is read is whole, always."""
    code = WRITER + (
        "for _ in range(60):\n"
        "    assert cache.store(tokens, state, 1.0)\n"
        "    entry = cache.load(tokens)\n"
        "    assert entry is None or np.array_equal(entry.state, state)\n"
        "    if _ % 7 == 0: cache.remove(tokens)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert all(path.suffix == ".prefix" for path in tmp_path.iterdir())


@pytest.mark.parametrize("moment", [
    "import os, signal, qwen_edge.files\n"
    "qwen_edge.files.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n",
    "import os, signal, qwen_edge.prefix_cache as module\n"
    "from qwen_edge.files import atomic_path\n"
    "def dying(path, *args):\n"
    "    with atomic_path(path) as part:\n"
    "        part.write_bytes(b'QWENEDGE, half of it')\n"
    "        os.kill(os.getpid(), signal.SIGKILL)\n"
    "module.write_state_file = dying\n",
], ids=["before the rename", "half written"])  # fmt: skip
def test_a_killed_writer_leaves_no_entry(moment: str, tmp_path: Path) -> None:
    code = WRITER + moment + "cache.store(tokens, state, 1.0)\n"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".part"
    cache = a_cache(tmp_path)
    assert cache.load(TOKENS) is None
    cache.store(TOKENS[1:], STATE, 1.0)  # another entry cleans up too
    assert [path.suffix for path in tmp_path.iterdir()] == [".prefix"]
