from __future__ import annotations

import collections
import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge import Model, load
from qwen_edge.config import GREEDY, SamplingConfig
from qwen_edge.engines import numpy_sampler
from qwen_edge.errors import ClosedError, ConfigError, ContextOverflowError, GGUFError, ModelNotFoundError
from qwen_edge.native import sampler
from qwen_edge.types import Message, ToolCall

Lines = Callable[[str], list[dict[str, Any]]]


def test_answers_and_thinks(tiny_model: Model) -> None:
    with tiny_model.session() as session:
        direct = session.send("What is the capital of Greece?", thinking="off", sampling=GREEDY)
        assert (direct.text, direct.thinking, direct.finish_reason) == ("Athens.", "", "stop")
        assert direct.stats.thinking_tokens == 0
    with tiny_model.session() as session:
        thought = session.send("What is the capital of Greece?", thinking="on", sampling=GREEDY)
        assert thought.text == "Athens."
        assert "Greece" in thought.thinking
        assert 0 < thought.stats.thinking_tokens < thought.stats.generated_tokens


def test_calls_a_tool_and_uses_the_result(tiny_model: Model, eval_lines: Lines) -> None:
    for line in eval_lines("tools.jsonl")[:5]:
        with tiny_model.session(tools=line["tools"]) as session:
            reply = session.send(line["messages"][0]["content"], thinking="off", sampling=GREEDY)
            expected = ToolCall(line["tool_call"]["name"], line["tool_call"]["arguments"])
            assert (reply.tool_calls, reply.finish_reason) == ((expected,), "tool_calls")
            answer = session.send(Message("tool", line["tool_result"]), thinking="off", sampling=GREEDY)
            assert answer.text == line["answer"]


def test_decomposed_characters_get_the_tokens_of_composed_ones(tiny_model: Model) -> None:
    """As in Qwen's tokenizer, which normalizes to NFC."""
    assert tiny_model.engine.tokenize("Straßen u\u0308ber") == tiny_model.engine.tokenize("Straßen \u00fcber")


def test_cached_turns_answer_like_fresh_ones(tiny_model: Model) -> None:
    questions = [
        "What is 12 + 30?",
        "What is the capital of Peru?",
        "Say Anna.",
        "Translate 'dog' to German.",
    ]
    with tiny_model.session() as session:
        for thinking in ("off", "on"):
            for question in questions:
                reply = session.send(question, thinking=thinking, sampling=GREEDY)
                if len(session.messages) > 2:
                    assert reply.stats.cached_tokens > 0
                with tiny_model.session() as fresh:
                    fresh.messages = session.messages[:-2]
                    again = fresh.send(question, thinking=thinking, sampling=GREEDY)
                assert again.stats.cached_tokens == 0
                assert (again.text, again.thinking) == (reply.text, reply.thinking)


def test_a_seed_repeats_and_another_differs(tiny_model: Model) -> None:
    def poem(seed: int) -> str:
        with tiny_model.session() as session:
            tokens = tiny_model.engine.tokenize("And the king said")
            sampling = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, seed=seed)
            stream = session.stream_tokens(tokens, max_tokens=40, sampling=sampling)
            return "".join(chunk.text for chunk in stream)

    assert poem(1) == poem(1)
    assert len({poem(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("sampling", [
    SamplingConfig(temperature=0.0, repetition_penalty=1.3, penalty_last_n=16),
    SamplingConfig(temperature=0.0, presence_penalty=1.5, penalty_last_n=16),
])  # fmt: skip
def test_penalties_equal_a_walk_over_the_whole_vocabulary(
    tiny_model: Model, sampling: SamplingConfig
) -> None:
    """The chain cuts to the best k + n tokens before the penalties; numpy does it without the cut."""
    prompt = tiny_model.engine.tokenize("the the the the the the the")
    with tiny_model.session() as session:
        stream = session.stream_tokens(prompt, max_tokens=24, sampling=sampling, ignore_end=True)
        produced = "".join(chunk.text for chunk in stream)
    tokens, generated = list(prompt), []
    for _ in range(24):
        logits = tiny_model.engine.score(tokens)[-1].astype(np.float64)
        for token in set(generated[-sampling.penalty_last_n :]):
            factor = sampling.repetition_penalty
            logits[token] = logits[token] * factor if logits[token] <= 0 else logits[token] / factor
            logits[token] -= sampling.presence_penalty
        token = int(np.argmax(logits))
        generated.append(token)
        tokens.append(token)
    expected = b"".join(tiny_model.engine.token_bytes(token) for token in generated).decode(errors="replace")
    assert produced.strip() == expected.strip()


@pytest.mark.parametrize("sampling", [
    GREEDY,
    SamplingConfig(temperature=0.8, top_k=20, top_p=0.9, seed=3),
    SamplingConfig(temperature=0.8, top_k=20, top_p=0.9, presence_penalty=1.0, repetition_penalty=1.1, seed=3),
])  # fmt: skip
def test_fewer_candidates_give_the_tokens_of_all(
    tiny_model: Model, sampling: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def text() -> str:
        with tiny_model.session() as session:
            tokens = tiny_model.engine.tokenize("And the king said")
            stream = session.stream_tokens(tokens, max_tokens=60, sampling=sampling, ignore_end=True)
            return "".join(chunk.text for chunk in stream)

    narrow = text()
    for module in (sampler, numpy_sampler):
        monkeypatch.setattr(module, "candidates_needed", lambda config: None)
    assert text() == narrow


def test_score_equals_the_decode_path(tiny_model: Model) -> None:
    tokens = tiny_model.engine.tokenize("In the beginning God created the heaven and the earth.")
    logits = tiny_model.engine.score(tokens)
    assert logits.shape == (len(tokens), tiny_model.info.n_vocab)
    with tiny_model.session() as session:
        stream = session.stream_tokens(tokens, max_tokens=1, sampling=GREEDY, ignore_end=True)
        text = "".join(chunk.text for chunk in stream)
    assert tiny_model.engine.token_bytes(int(np.argmax(logits[-1]))).decode() == text


def test_prompt_of_many_batches_equals_one_batch(tiny_path: Path) -> None:
    def answer(n_batch: int) -> str:
        with (
            load(tiny_path, n_ctx=1024, n_batch=n_batch, n_threads=1, safe_kernels=False) as model,
            model.session() as session,
        ):
            tokens = model.engine.tokenize(
                "And it came to pass, that the king of Israel said unto him. " * 12
            )
            stream = session.stream_tokens(tokens, max_tokens=20, sampling=GREEDY)
            return "".join(chunk.text for chunk in stream)

    assert answer(32) == answer(512)


@pytest.mark.parametrize("settings", [
    {"flash_attention": "on"},
    {"flash_attention": "on", "kv_type": "q8_0"},
    {"kv_type": "f32"},
    {"kv_type": "bf16"},
    {"load_mode": "mmap"},
    {"n_threads": 2},
])  # fmt: skip
def test_every_way_to_load_answers(tiny_bf16: Path, settings: dict[str, Any]) -> None:
    config = {"n_ctx": 512, "n_threads": 1, "safe_kernels": False, **settings}
    with load(tiny_bf16, **config) as model, model.session() as session:
        assert {
            key: model.info.settings[key] for key in settings if key != "n_threads"
        }.items() <= settings.items()
        reply = session.send("What is the capital of Greece?", thinking="off", sampling=GREEDY)
    assert reply.text == "Athens."


def test_unknown_settings_are_named(tiny_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown setting n_context"):
        load(tiny_path, n_context=512)


def test_full_context_and_overflow(tiny_path: Path) -> None:
    with load(tiny_path, n_ctx=64, n_threads=1, safe_kernels=False) as model, model.session() as session:
        with pytest.raises(ContextOverflowError):
            session.send("word " * 100)
        tokens = model.engine.tokenize("And the king said")
        stream = session.stream_tokens(tokens, max_tokens=1000, sampling=GREEDY, ignore_end=True)
        for _ in stream:
            pass
        assert stream.reply.finish_reason == "length"
        assert stream.reply.stats.generated_tokens == 64 - len(tokens)
        assert session.send("Say Anna.", thinking="off", sampling=GREEDY).text == "Anna"


def test_ctrl_c_stops_and_the_session_goes_on(tiny_model: Model) -> None:
    with tiny_model.session() as session:
        expected = session.send("What is the capital of Greece?", thinking="off", sampling=GREEDY).text
    with tiny_model.session() as session:
        tokens = tiny_model.engine.tokenize("And the king said")
        timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
        stream = session.stream_tokens(tokens, max_tokens=2000, sampling=GREEDY, ignore_end=True)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            collections.deque(stream, maxlen=0)
        assert stream.reply.finish_reason == "cancelled"
        assert (
            session.send("What is the capital of Greece?", thinking="off", sampling=GREEDY).text == expected
        )


def test_ctrl_c_ends_the_native_call_in_flight(tiny_path: Path) -> None:
    """On the command line: a prompt of one large batch is given up long before it is read."""
    from qwen_edge.cli.stream import ctrl_c_cancels

    with (
        load(tiny_path, n_ctx=4096, n_batch=4096, n_threads=1, safe_kernels=False) as model,
        model.session() as session,
    ):
        tokens = model.engine.tokenize("And it came to pass. " * 800)[:4000]
        stream = session.stream_tokens(tokens, max_tokens=1, sampling=GREEDY)
        start = time.perf_counter()
        collections.deque(stream, maxlen=0)
        whole_s = time.perf_counter() - start
        tokens[0] += 1  # nothing of it is cached now
        stream = session.stream_tokens(tokens, max_tokens=1, sampling=GREEDY)
        timer = threading.Timer(whole_s / 10, signal.raise_signal, [signal.SIGINT])
        start = time.perf_counter()
        timer.start()
        with pytest.raises(KeyboardInterrupt), ctrl_c_cancels(session):
            collections.deque(stream, maxlen=0)
        assert stream.reply.finish_reason == "cancelled"
        assert time.perf_counter() - start < 0.7 * whole_s
        assert session.send("Say Anna.", thinking="off", sampling=GREEDY).text == "Anna"


def test_cancel_from_a_thread_aborts_the_native_call(tiny_model: Model) -> None:
    with tiny_model.session() as session:
        tokens = tiny_model.engine.tokenize("And the king said")
        stream = session.stream_tokens(tokens, max_tokens=1900, sampling=GREEDY, ignore_end=True)
        next(stream)
        thread = threading.Thread(target=session.cancel)
        thread.start()
        thread.join()
        for _ in stream:
            pass
        assert stream.reply.finish_reason == "cancelled"
        assert session.send("Say Anna.", thinking="off", sampling=GREEDY).text == "Anna"


def test_every_native_object_is_freed_once(tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen_edge.native import library

    counts = dict.fromkeys(["llama_model_free", "llama_free", "llama_sampler_free", "llama_batch_free"], 0)
    order: list[str] = []

    def counted(name: str) -> Callable[[Any], None]:
        real = getattr(library.api(), name)

        def free(handle: Any) -> None:
            counts[name] += 1
            order.append(name)
            real(handle)

        return free

    for name in counts:
        monkeypatch.setattr(library.api(), name, counted(name))
    model = load(tiny_bf16, n_ctx=128, n_threads=1, safe_kernels=False)
    closed = model.session()
    closed.send("Say Anna.", max_tokens=2)
    closed.close()
    forgotten = model.session()
    forgotten.send("Say Anna.", max_tokens=2)
    gone = weakref.ref(forgotten)
    del forgotten
    gc.collect()
    assert gone() is None
    left_open = model.session()
    left_open.send("Say Anna.", max_tokens=2)
    model.close()
    model.close()
    left_open.close()
    assert counts == {"llama_model_free": 1, "llama_free": 3, "llama_sampler_free": 3, "llama_batch_free": 3}
    assert order[-1] == "llama_model_free"
    with pytest.raises(ClosedError):
        left_open.send("Hi")


def test_close_waits_for_the_call_in_flight(tiny_model: Model) -> None:
    session = tiny_model.session()
    tokens = tiny_model.engine.tokenize("And the king said")
    stream = session.stream_tokens(tokens, max_tokens=2000, sampling=GREEDY, ignore_end=True)
    next(stream)
    closer = threading.Timer(0.05, session.close)
    closer.start()
    with pytest.raises(ClosedError):
        for _ in stream:
            pass
    closer.join()


def test_damaged_files_are_our_errors(tiny_bf16: Path, tmp_path: Path) -> None:
    data = tiny_bf16.read_bytes()
    for name, content, error in [
        ("short.gguf", data[: len(data) // 2], GGUFError),
        ("header.gguf", data[:100], GGUFError),
        ("empty.gguf", b"", GGUFError),
        ("text.gguf", b"hello, not a model", GGUFError),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(error, match=name):
            load(path, n_threads=1, safe_kernels=False)
    with pytest.raises(ModelNotFoundError):
        load(tmp_path / "absent.gguf")
    with pytest.raises(ModelNotFoundError, match="folder"):
        load(tmp_path)
