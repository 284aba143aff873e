"""KV caches of the ONNX engine: rows that are evaluated together, states, cancelling, and what is given back."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import psutil
import pytest

from qwen_edge import load
from qwen_edge.config import GREEDY
from qwen_edge.engines.base import Context
from qwen_edge.engines.onnx import OnnxEngine
from qwen_edge.engines.onnx_cache import OnnxCache
from qwen_edge.errors import CancelledError, ClosedError, ContextOverflowError, FormatError, NativeError
from qwen_edge.native.batch import Part

TOKENS = [(7 * i + 3) % 4000 for i in range(120)]
_WARM_UP, _CYCLES = 20, 60
# One graph of this size that is not freed is 23 MB, one session's KV cache 1.5 MB.
_GROWTH_BYTES = 8_000_000


def new_cache(engine: OnnxEngine, n_rows: int, n_ctx: int = 64) -> OnnxCache:
    graph = engine._graph
    assert graph is not None
    return OnnxCache(graph, n_rows=n_rows, n_ctx=n_ctx, n_batch=64, weights_bytes=engine.info.weights_bytes)


def alone(engine: OnnxEngine, tokens: list[int]) -> np.ndarray:
    return engine.score(tokens)[-1]


@pytest.fixture
def engine(tiny_onnx: Path) -> OnnxEngine:
    with load(tiny_onnx, n_ctx=512, n_threads=1) as model:
        assert isinstance(model.engine, OnnxEngine)
        yield model.engine  # type: ignore[misc]


@pytest.mark.parametrize("most_idle", [0, 10**9], ids=["calls apart", "one call"])
def test_rows_together_compute_what_they_do_alone(engine: OnnxEngine, most_idle: int) -> None:
    """Rows of all lengths, some idle in between, one empty and one full."""
    cache = new_cache(engine, 6)
    cache._most_idle_tokens = most_idle
    lengths = [5, 0, 64, 20, 7, 63]
    for row, length in enumerate(lengths):
        if length:
            cache.evaluate([Part(row, 0, TOKENS[row : row + length])])
    for rows in ((0, 3, 5), (0, 1, 4), (4,), (1, 3)):
        before = list(map(cache.length, range(6)))
        outs = {row: np.zeros(cache.n_vocab, np.float32) for row in rows}
        cache.evaluate([Part(row, before[row], [TOKENS[row + before[row]]], outs[row]) for row in rows])
        for row, out in outs.items():
            assert np.allclose(out, alone(engine, TOKENS[row : row + before[row] + 1]), atol=1e-3)
        assert [cache.length(row) - before[row] for row in range(6)] == [int(row in rows) for row in range(6)]
    cache.close()


def test_steps_and_prompts_in_one_call(engine: OnnxEngine) -> None:
    cache = new_cache(engine, 3)
    outs = [np.zeros(cache.n_vocab, np.float32) for _ in range(3)]
    cache.evaluate(
        [Part(0, 0, TOKENS[:9], outs[0]), Part(2, 0, TOKENS[50:51], outs[2]), Part(1, 0, TOKENS[20:50])]
    )
    cache.evaluate([Part(1, 30, TOKENS[50:51], outs[1])])
    for out, tokens in zip(outs, (TOKENS[:9], TOKENS[20:51], TOKENS[50:51]), strict=True):
        assert np.allclose(out, alone(engine, tokens), atol=1e-3)
    cache.close()


def test_a_call_that_fails_leaves_rows_as_they_were(engine: OnnxEngine) -> None:
    context = engine.new_context()
    context.append(TOKENS[:10])
    with pytest.raises(NativeError, match="ONNX Runtime failed"):
        context.append([1, 10**9])
    assert context.n_past == 10
    context.append(TOKENS[10:12])
    assert np.allclose(context.logits(), alone(engine, TOKENS[:12]), atol=1e-3)
    with pytest.raises(ContextOverflowError):
        context.append([1] * 501)
    context.rewind(5)
    context.append(TOKENS[5:7])
    assert np.allclose(context.logits(), alone(engine, TOKENS[:7]), atol=1e-3)


def test_prompts_without_logits_fill_the_cache(engine: OnnxEngine) -> None:
    context = engine.new_context()
    context.append(TOKENS[:10], wants_logits=False)
    context.append(TOKENS[10:11], wants_logits=False)
    context.append(TOKENS[11:12])
    assert np.allclose(context.logits(), alone(engine, TOKENS[:12]), atol=1e-3)


def test_cancelling_ends_a_call_between_nodes(tiny_onnx: Path) -> None:
    with load(tiny_onnx, n_ctx=4096, n_batch=4096, n_threads=1) as model:
        context = model.engine.new_context()
        tokens = [(7 * i) % 4000 for i in range(4000)]
        start_s = time.perf_counter()
        context.append(tokens)
        whole_s = time.perf_counter() - start_s
        context.rewind(0)
        timer = threading.Timer(whole_s / 10, context.cancel)
        start_s = time.perf_counter()
        timer.start()
        with pytest.raises(CancelledError):
            context.append(tokens)
        assert time.perf_counter() - start_s < 0.7 * whole_s
        assert context.n_past == 0
        with pytest.raises(CancelledError):
            context.append([1])
        context.clear_cancel()
        context.append([1])
        assert context.n_past == 1


def test_closed_is_closed(tiny_onnx: Path) -> None:
    model = load(tiny_onnx, n_ctx=64, n_threads=1)
    engine = model.engine
    context, other = engine.new_context(), engine.new_context()
    context.append([1])
    context.start_sampling(GREEDY)
    context.close()
    context.close()
    uses = [context.sample, context.save_state, lambda: context.append([1]), lambda: context.rewind(0)]
    model.close()
    model.close()
    for use in (*uses, lambda: other.append([1]), engine.new_context, lambda: engine.score([1])):
        with pytest.raises(ClosedError):
            use()


def test_states_that_do_not_fit_are_refused_and_leave_the_row_empty(engine: OnnxEngine) -> None:
    context: Context = engine.new_context()
    context.append(TOKENS[:40])
    expected, state = context.logits(), context.save_state()
    random = np.random.default_rng(1)
    cases = [(state[:n], 40) for n in (0, 3, 20, 500, len(state) - 1)]
    cases += [(state, 39), (state, 2000), (np.append(state, np.uint8(0)), 40)]
    for index in range(20):
        flipped = state.copy()
        flipped[index] ^= random.integers(1, 256)
        cases.append((flipped, 40))
    for data, n_tokens in cases:
        with pytest.raises(FormatError, match="a saved KV cache does not fit this context"):
            context.load_state(data, n_tokens)
        assert context.n_past == 0
    context.load_state(state.tobytes(), 40)
    context.rewind(39)
    context.append(TOKENS[39:40])
    assert np.allclose(context.logits(), expected, atol=1e-3)


def test_sessions_that_evaluate_together_can_be_saved_and_branched(tiny_onnx: Path, tmp_path: Path) -> None:
    with load(tiny_onnx, n_ctx=512, n_threads=1, n_sessions=3) as model:
        session = model.session(system="Be brief.")
        session.send("Say Anna.", thinking="off", sampling=GREEDY)
        session.save(tmp_path / "a.session")
        with session.branch() as branch:
            texts = [
                each.send("What is 12 + 30?", thinking="on", sampling=GREEDY).text
                for each in (session, branch)
            ]
        restored = model.restore_session(tmp_path / "a.session")
        reply = restored.send("What is 12 + 30?", thinking="on", sampling=GREEDY)
        assert restored.rebuilt_because == ""
    assert [reply.text] * 2 == texts


def test_changed_weights_are_another_prefix(folder: Path) -> None:
    def run(**settings: int) -> str:
        with load(folder, n_threads=1, **{"n_ctx": 512, **settings}) as model:
            session = model.session(system="And it came to pass, that the king said unto him. " * 30)
            return session.send("Say Anna.", thinking="off", sampling=GREEDY, max_tokens=4).stats.prefix_cache

    assert (run(), run(), run(n_ctx=1024, n_batch=64)) == ("miss", "hit", "hit")
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[-1] ^= 1
    (folder / "model.onnx.data").write_bytes(data)
    assert run() == "miss"
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert run() == "miss"


def test_a_forgotten_session_is_given_back(tiny_onnx: Path) -> None:
    with load(tiny_onnx, n_ctx=64, n_threads=1) as model:
        session = model.session()
        session.send("Say Anna.", max_tokens=2)
        gone = weakref.ref(session._idle_cache().context)
        del session
        gc.collect()
        assert gone() is None


def _cycle(path: Path) -> None:
    with load(path, n_ctx=256, n_threads=1) as model:
        with model.session(system="Be brief.") as session:
            assert session.send("Say Anna.", thinking="off", sampling=GREEDY, logprobs=2).text == "Anna"
            session.send("Say Bob.", thinking="off", max_tokens=2)
        left_open = model.session()
        left_open.send("Say Anna.", max_tokens=1, timeout_s=60)


def test_many_cycles_leave_memory_as_it_was(tiny_onnx: Path) -> None:
    process = psutil.Process()
    for _ in range(_WARM_UP):
        _cycle(tiny_onnx)
    gc.collect()
    before_bytes, n_threads, n_files = process.memory_info().rss, process.num_threads(), process.num_fds()
    for _ in range(_CYCLES):
        _cycle(tiny_onnx)
    gc.collect()
    assert process.memory_info().rss - before_bytes < _GROWTH_BYTES
    assert (process.num_threads(), process.num_fds()) == (n_threads, n_files)


def test_nothing_is_said_on_stderr(folder: Path) -> None:
    """Not at import, nor of a cancelled call, a failed one, or a graph that does not load."""
    shutil.copytree(folder, folder.parent / "other")
    code = (
        "import sys, threading, qwen_edge\n"
        "from qwen_edge.errors import QwenEdgeError\n"
        "with qwen_edge.load(sys.argv[1], n_threads=1, n_ctx=4096, n_batch=4096) as model:\n"
        "    context = model.engine.new_context()\n"
        "    threading.Timer(0.02, context.cancel).start()\n"
        "    for tokens in ([1] * 4000, [10**9]):\n"
        "        try: context.append(tokens)\n"
        "        except QwenEdgeError as error: print(type(error).__name__)\n"
        "        context.clear_cancel()\n"
        "open(sys.argv[2] + '/model.onnx', 'r+b').write(bytes(5))\n"
        "try: qwen_edge.load(sys.argv[2])\n"
        "except QwenEdgeError as error: print(type(error).__name__)\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(folder.parent / "other")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.stdout.split(), result.stderr) == (["CancelledError", "NativeError", "FormatError"], "")
