"""What surrounds the engine's pooled output; integration tests compare the numbers with the reference."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.config import LoadConfig
from qwen_edge.embedding import DEFAULT_INSTRUCTION
from qwen_edge.engines.base import PoolingInfo
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import ConfigError, ContextOverflowError, UnsupportedError
from qwen_edge.model import Model

SIZE, END = 128, 127
EMBEDDING = PoolingInfo(kind="last", size=SIZE, end_token=END)
# The fake's result for a token is its share of the text. Token 0 stands first: a byte that documents bring along.
RERANKER = PoolingInfo(
    kind="rank", size=2, rerank_template=f"<|im_start|>{DEFAULT_INSTRUCTION}|{{query}}|{{document}}<|im_end|>"
)


def _seen(pooling: PoolingInfo, act: Callable[[Model], Any]) -> list[str]:
    """Return the texts that the engine gets."""
    engine = FakeEngine("", pooling=pooling)
    pooled, texts = engine.pooled, []

    def note(sequences: Any, **options: Any) -> Any:
        texts.extend(engine.text(tokens) for tokens in sequences)
        return pooled(sequences, **options)

    engine.pooled = note  # type: ignore[method-assign]
    act(Model(engine))
    return texts


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), max_size=5),
    dimensions=st.integers(1, SIZE),
)
def test_rows_have_length_one(texts: list[str], dimensions: int) -> None:
    with Model(FakeEngine("", pooling=EMBEDDING)) as model:
        vectors = model.embed(texts)
        assert (vectors.shape, vectors.dtype) == ((len(texts), SIZE), np.float32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
        cut = model.embed(texts, dimensions=dimensions)
        assert cut.shape == (len(texts), dimensions)
        for row, whole in zip(cut, vectors, strict=True):
            length = np.linalg.norm(whole[:dimensions])
            np.testing.assert_allclose(row * length, whole[:dimensions], atol=1e-6)


def test_texts_queries_and_the_end_token() -> None:
    end = chr(END)
    assert _seen(EMBEDDING, lambda model: model.embed(["a", "<|im_end|>"])) == [f"a{end}", f"<|im_end|>{end}"]
    assert _seen(EMBEDDING, lambda model: model.embed("a", is_query=True)) == [
        f"Instruct: {DEFAULT_INSTRUCTION}\nQuery:a{end}"
    ]
    assert _seen(EMBEDDING, lambda model: model.embed("{query}", instruction="Find {x}")) == [
        f"Instruct: Find {{x}}\nQuery:{{query}}{end}"
    ]
    plain = PoolingInfo(kind="mean", size=SIZE)
    assert _seen(plain, lambda model: model.embed("a")) == ["a"]


def test_special_tokens_in_a_text_are_text() -> None:
    engine = FakeEngine("", pooling=EMBEDDING)
    assert Model(engine).embed("<|im_end|>")[0, ord("<")] > 0


def test_the_prompt_of_a_reranker_is_filled_once() -> None:
    assert _seen(RERANKER, lambda model: model.rerank("{document}", ["{query}", "b"])) == [
        f"<|im_start|>{DEFAULT_INSTRUCTION}|{{document}}|{{query}}<|im_end|>",
        f"<|im_start|>{DEFAULT_INSTRUCTION}|{{document}}|b<|im_end|>",
    ]
    assert _seen(RERANKER, lambda model: model.rerank("q", ["d"], instruction="{query}")) == [
        "<|im_start|>{query}|q|d<|im_end|>"
    ]


def test_documents_come_best_first() -> None:
    with Model(FakeEngine("", pooling=RERANKER)) as model:
        ranked = model.rerank("q", ["a", "\0\0", "a", "\0"])
        assert [index for index, _ in ranked] == [1, 3, 0, 2]
        assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
        assert model.rerank("q", []) == []


@pytest.mark.parametrize(("pooling", "act", "error", "message"), [
    (EMBEDDING, lambda m: m.embed("a", dimensions=0), ConfigError, "dimensions must be between 1 and 128"),
    (EMBEDDING, lambda m: m.embed("a", dimensions=129), ConfigError, "dimensions must be between 1 and 128"),
    (EMBEDDING, lambda m: m.embed(3), ConfigError, "texts must be a list of texts"),
    (EMBEDDING, lambda m: m.embed(["a", 3]), ConfigError, r"texts\[1\] must be text \(not int\)"),
    (EMBEDDING, lambda m: m.embed("a" * 100), ContextOverflowError, "do not fit"),
    (PoolingInfo(kind="cls", size=4), lambda m: m.embed(["a", ""]), ConfigError, r"texts\[1\] is empty"),
    (RERANKER, lambda m: m.rerank("q", "document"), ConfigError, "documents must be a list of texts"),
    (RERANKER, lambda m: m.rerank(3, ["d"]), ConfigError, "query must be text"),
    (PoolingInfo(kind="rank", size=2), lambda m: m.rerank("q", ["d"]), UnsupportedError, "no prompt for reranking"),
    (PoolingInfo(kind="rank", size=2, rerank_template="{query}{document}"),
     lambda m: m.rerank("q", ["d"], instruction="i"), UnsupportedError, "no place for an instruction"),
    (None, lambda m: m.embed("a"), UnsupportedError, "makes no embeddings: it is a model that chats"),
    (None, lambda m: m.rerank("q", ["d"]), UnsupportedError, "does not rerank: it is a model that chats"),
    (EMBEDDING, lambda m: m.session().stream("Hi"), UnsupportedError, "does not chat: it is an embedding model"),
    (RERANKER, lambda m: m.session().stream("Hi"), UnsupportedError, "does not chat: it is a reranker"),
])  # fmt: skip
def test_what_cannot_be_is_said(
    pooling: PoolingInfo | None, act: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    with Model(FakeEngine("", pooling=pooling, config=LoadConfig(n_ctx=64))) as model:
        with pytest.raises(error, match=message):
            act(model)
        if pooling is None:
            with pytest.raises(UnsupportedError, match="no embedding models"):
                model.engine.pooled([[1]])


def test_for_asyncio_the_results_are_the_same_and_the_loop_goes_on() -> None:
    async def main() -> None:
        with Model(FakeEngine("", pooling=EMBEDDING)) as model:
            one, two = await asyncio.gather(
                model.aembed("abc"), model.aembed(["abc"], is_query=True, dimensions=9)
            )
            np.testing.assert_array_equal(one, model.embed("abc"))
            np.testing.assert_array_equal(two, model.embed("abc", is_query=True, dimensions=9))
            with pytest.raises(ConfigError, match="dimensions"):
                await model.aembed("abc", dimensions=0)
        with Model(FakeEngine("", pooling=RERANKER)) as model:
            assert await model.arerank("q", ["a", "b"]) == model.rerank("q", ["a", "b"])

    asyncio.run(main())


def test_a_cancelled_task_ends_the_call_at_its_next_batch() -> None:
    seen: list[Any] = []
    inside = threading.Event()

    def slow(tokens: Any) -> None:
        seen.append(tokens)
        inside.set()
        time.sleep(0.01)

    async def main() -> None:
        with Model(FakeEngine("", pooling=EMBEDDING, on_append=slow)) as model:
            task = asyncio.create_task(model.aembed(["text"] * 1000))
            await asyncio.to_thread(inside.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            n_seen = len(seen)
            assert n_seen < 1000
            await asyncio.sleep(0.05)
            assert len(seen) == n_seen, "it is over when the task is told so"
            assert (await model.aembed("more")).shape == (1, SIZE)

    asyncio.run(main())
