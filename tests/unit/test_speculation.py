"""Speculation changes how many tokens a call takes, and nothing of the reply."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge import LoadConfig, Model, speculation
from qwen_edge.config import GREEDY
from qwen_edge.engines.fake import FakeContext, FakeEngine
from qwen_edge.errors import CancelledError, ConfigError
from qwen_edge.generation import GenerationRequest, Meter, Outcome, TokenCache, generate
from qwen_edge.speculation import Speculation
from qwen_edge.speculation_draft import DraftProposer, check_same_vocabulary
from qwen_edge.speculation_gain import Balance, CallCosts
from qwen_edge.speculation_lookup import PromptLookup
from qwen_edge.speculation_proposer import Proposal, Proposer
from qwen_edge.types import Reply

TEXTS = st.text("ab \n", max_size=40)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is proposed is evaluated: the fake engine's times say nothing."""
    monkeypatch.setattr(speculation, "best_count", lambda kinds, acceptance, costs: len(kinds))
    monkeypatch.setattr(CallCosts, "plain_s", 1.0)
    monkeypatch.setattr(CallCosts, "wants_plain", False)
    monkeypatch.setattr(Balance, "is_paused", False)


class Guesses(Proposer):
    """Knows what the reply will be, and is wrong where it is told to be."""

    is_free = True

    def __init__(self, whole: Sequence[int], wrong: Sequence[bool]) -> None:
        self._whole, self._wrong = whole, wrong
        self._length = 0

    def follow(self, tokens: Sequence[int]) -> None:
        self._length = len(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        self._length += len(tokens)

    def propose(self, most: int) -> list[Proposal]:
        places = range(self._length, min(self._length + most, len(self._whole)))
        return [Proposal((self._whole[i] + self._wrong[i % len(self._wrong)]) % 256, 4) for i in places]

    def uncounted_s(self) -> float:
        return 0.0

    def cancel(self) -> None: ...

    def clear_cancel(self) -> None: ...

    def close(self) -> None: ...


def answer(
    engine: FakeEngine, request: GenerationRequest, proposer: Proposer | None
) -> tuple[Reply, TokenCache, FakeContext]:
    context = engine.new_context()
    cache = TokenCache(context, None if proposer is None else Speculation(context, proposer))
    outcome = Outcome()
    for _ in generate(engine, cache, request, Meter(), outcome):
        pass
    assert outcome.reply is not None
    return outcome.reply, cache, context


def facts(reply: Reply) -> Any:
    stats = reply.stats
    return (
        reply.text, reply.thinking, reply.tool_calls, reply.finish_reason, reply.logprobs,
        stats.generated_tokens, stats.thinking_tokens, stats.closing_tokens, stats.thought_cut,
    )  # fmt: skip


@pytest.mark.usefixtures("always")
class TestSameReply:
    """Token for token, with any proposals."""

    @settings(max_examples=150)
    @given(
        prompt=st.text("ab \n", min_size=2, max_size=40), thought=st.none() | TEXTS, text=TEXTS,
        n_ctx=st.integers(64, 140), n_batch=st.integers(2, 40), max_tokens=st.none() | st.integers(1, 60),
        wrong=st.lists(st.booleans(), min_size=1, max_size=7), ignore_end=st.booleans(),
        logprobs=st.none() | st.just(2), budget=st.none() | st.integers(0, 20), looks_up=st.booleans(),
    )  # fmt: skip
    def test_the_same(
        self, prompt: str, thought: str | None, text: str, n_ctx: int, n_batch: int, max_tokens: int | None,
        wrong: list[bool], ignore_end: bool, logprobs: int | None, budget: int | None, looks_up: bool,
    ) -> None:  # fmt: skip
        from qwen_edge.config import ThinkingConfig

        said = text if thought is None else f"<think>{thought}</think>{text}"
        engine = FakeEngine(said, config=LoadConfig(n_ctx=n_ctx, n_batch=n_batch))
        request = GenerationRequest(
            tokens=engine.tokenize(prompt), sampling=GREEDY, max_tokens=max_tokens, ignore_end=ignore_end,
            logprobs=logprobs, thinking=ThinkingConfig(budget=budget),
        )  # fmt: skip
        plain, plain_cache, plain_context = answer(engine, request, None)
        whole = [*plain_cache.tokens, *engine.tokenize("abab")]
        proposer = PromptLookup() if looks_up else Guesses(whole, wrong)
        reply, cache, context = answer(engine, request, proposer)
        assert facts(reply) == facts(plain)
        assert cache.tokens == plain_cache.tokens
        assert context._tokens == plain_context._tokens
        stats = reply.stats
        assert 0 <= stats.accepted_tokens <= stats.proposed_tokens
        assert stats.accepted_tokens < max(1, stats.generated_tokens)
        assert (plain.stats.proposed_tokens, plain.stats.speculation) == (0, "off")

    def test_right_guesses_save_calls_and_wrong_ones_do_not(self) -> None:
        calls: list[int] = []
        engine = FakeEngine("0123456789" * 5, on_append=lambda tokens: calls.append(len(tokens)))
        tokens = engine.tokenize("xy")
        whole = [*tokens, *engine.tokenize("0123456789" * 5)]
        request = GenerationRequest(tokens=tokens, sampling=GREEDY)
        right, _, _ = answer(engine, request, Guesses(whole, [False]))
        assert calls == [2, 16, 16, 16, 2]
        assert (right.stats.proposed_tokens, right.stats.accepted_tokens) == (46, 46)
        calls.clear()
        bad, _, _ = answer(engine, request, Guesses(whole, [True]))
        assert len(calls) == 1 + 50
        assert bad.stats.accepted_tokens == 0
        assert facts(bad) == facts(right)

    def test_nothing_is_proposed_beyond_max_tokens(self) -> None:
        calls: list[int] = []
        engine = FakeEngine("0123456789", on_append=lambda tokens: calls.append(len(tokens)))
        tokens = engine.tokenize("xy")
        request = GenerationRequest(tokens=tokens, sampling=GREEDY, max_tokens=4)
        answer(engine, request, Guesses([*tokens, *engine.tokenize("0123456789")], [False]))
        assert calls == [
            2,
            3,
        ]  # the prompt; the first token and two behind it, of which the last gives the fourth

    def test_nor_beyond_the_context(self) -> None:
        engine = FakeEngine("0" * 40, config=LoadConfig(n_ctx=20))
        tokens = engine.tokenize("xy")
        reply, cache, _ = answer(
            engine, GenerationRequest(tokens=tokens, sampling=GREEDY), Guesses([*tokens, *b"0" * 40], [False])
        )
        assert (reply.finish_reason, reply.stats.generated_tokens, len(cache.tokens)) == ("length", 18, 19)

    @pytest.mark.parametrize("failing_call", [2, 3, 4])
    def test_cancelled_in_the_middle(self, failing_call: int) -> None:
        calls: list[int] = []

        def count(tokens: Sequence[int]) -> None:
            calls.append(len(tokens))
            if len(calls) == failing_call:
                raise CancelledError("cancelled")

        engine = FakeEngine("abc " * 20, on_append=count)
        reply, cache, context = answer(
            engine, GenerationRequest(tokens=engine.tokenize("abc abc abc "), sampling=GREEDY), PromptLookup()
        )
        assert reply.finish_reason == "cancelled"
        assert context._tokens == list(cache.tokens)
        assert ("abc " * 20).startswith(reply.text)
        assert engine.text(cache.tokens) == "abc abc abc " + reply.text[:-1]

    def test_a_stream_that_is_left(self) -> None:
        with Model(FakeEngine("abc " * 20, config=LoadConfig(speculation="prompt_lookup"))) as model:
            session = model.session()
            chunks: Iterator[Any] = iter(session.stream("abc abc abc abc"))
            for _ in range(9):
                next(chunks)
            del chunks
            cache = session._idle_cache()
            assert cache.context.n_past == len(cache.tokens)
            assert session.send("again").text == "abc " * 20

    def test_what_is_evaluated_ahead_does_not_outlive_a_cancel(self) -> None:
        with Model(FakeEngine("abc " * 20, config=LoadConfig(speculation="prompt_lookup"))) as model:
            session = model.session()
            stream = session.stream("abc abc abc abc")
            said = [next(stream).text for _ in range(5)]
            stream.cancel()
            said += [chunk.text for chunk in stream]
            assert len("".join(said)) <= 6
            assert stream.reply.finish_reason == "cancelled"
            cache = session._idle_cache()
            assert cache.context.n_past == len(cache.tokens)
            assert session.send("again").text == "abc " * 20

    def test_turns_of_a_session(self) -> None:
        replies = {}
        for mode in ("off", "prompt_lookup"):
            with Model(FakeEngine(lambda prompt: prompt[-70:], config=LoadConfig(n_ctx=2048))) as model:
                session = model.session(speculation=mode)
                texts = [session.send(turn).text for turn in ("one two", "two one two", "three")]
                session.undo()
                replies[mode] = [*texts, session.send("one two").text, session.messages]
        assert replies["off"] == replies["prompt_lookup"]

    @pytest.mark.parametrize("is_bad", [False, True])
    def test_a_draft_model(self, is_bad: bool) -> None:
        text = "a text that is nothing but a text"
        draft = FakeEngine("", config=LoadConfig(n_ctx=4096))
        peaked = DraftLogits(draft, text if not is_bad else "?" * 40)
        draft.new_context = lambda: peaked  # type: ignore[method-assign]
        model = Model(FakeEngine(text, config=LoadConfig(speculation="draft", draft_model="x")), draft=draft)
        with model, model.session() as session:
            reply = session.send("hello")
            assert reply.text == text
            stats = reply.stats
            assert stats.proposed_tokens > 0
            assert stats.accepted_tokens == (0 if is_bad else stats.proposed_tokens)
            assert session.send("hello").text == text
        assert peaked._closed


class DraftLogits(FakeContext):
    """Is sure of a text, by the number of tokens behind the last marker."""

    def __init__(self, engine: FakeEngine, text: str) -> None:
        super().__init__(engine)
        self._text = text

    def logits(self) -> Any:
        row = super().logits()
        said = self._engine.text(self._tokens).rpartition("assistant\n")[2]
        ended = len(said) >= len(self._text)
        row[self._engine.end_token if ended else self._text.encode()[len(said)]] = 100.0
        return row


def test_several_sessions_together_go_without() -> None:
    config = LoadConfig(n_sessions=2, speculation="prompt_lookup")
    with Model(FakeEngine("abc", config=config)) as model, model.session() as session:
        assert session.send("x").stats.speculation == "off"


def test_another_vocabulary_is_refused() -> None:
    class Other(FakeEngine):
        def token_bytes(self, token: int) -> bytes:
            return b"?" if token == 65 else super().token_bytes(token)

    engine, draft = FakeEngine(""), Other("")
    with pytest.raises(ConfigError, match="its token 65 is b'\\?', the model's b'A'"):
        check_same_vocabulary(engine, draft)
    with pytest.raises(ConfigError, match="cannot draft for"):
        Model(FakeEngine(""), draft=draft)
    assert draft.contexts == []


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"speculation": "lookup"}, "speculation must be one of"),
        ({"speculation": "draft"}, "needs a draft model"),
        ({"speculation": "prompt_lookup", "draft_model": "a.gguf"}, "a draft_model is given too"),
    ],
)
def test_settings_that_contradict(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoadConfig(**settings_)
    assert LoadConfig(draft_model="a.gguf").speculation == "draft"  # type: ignore[arg-type]


def test_a_session_without_a_draft_model() -> None:
    with Model(FakeEngine("")) as model, pytest.raises(ConfigError, match="without a draft model"):
        model.session(speculation="draft")


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=6), st.integers(0, 3))
def test_a_draft_follows_the_text(texts: list[list[int]], extra: int) -> None:
    draft = FakeEngine("", config=LoadConfig(n_batch=3))
    proposer = DraftProposer(draft)
    for text in texts:
        whole = [1, *text]
        proposer.follow(whole)
        proposer.propose(2)
        assert draft.contexts[0]._tokens[: len(whole)] == whole
        proposer.extend([extra])
        proposer.propose(2)
        assert draft.contexts[0]._tokens[: len(whole) + 1] == [*whole, extra]
