"""Embeddings and reranking: texts to vectors, documents to scores. Behind Model.embed() and Model.rerank().

Source: the model cards of Qwen3-Embedding and Qwen3-Reranker; arXiv 2506.05176.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qwen_edge.engines.base import Engine, PoolingInfo
from qwen_edge.errors import ConfigError, UnsupportedError

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

# No space behind "Query:": the token of the query's first word is another with it.
_QUERY_FORMAT = "Instruct: {instruction}\nQuery:{query}"
_CONTROL_TOKEN = re.compile(r"(<\|[a-z_]+\|>)")
_FIELD = re.compile(r"\{(query|document|instruction)\}")


def embed(
    engine: Engine,
    texts: str | Sequence[str],
    *,
    instruction: str | None = None,
    is_query: bool = False,
    dimensions: int | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> NDArray[np.float32]:
    """Return the embeddings of texts. See Model.embed()."""
    pooling = engine.info.pooling
    if pooling is None or pooling.kind == "rank":
        raise UnsupportedError(
            f"{_name(engine)} makes no embeddings: it is {_trade(pooling)}",
            hint="Load an embedding model, such as qwen3-embedding-0.6b.",
        )
    if dimensions is not None and not 1 <= dimensions <= pooling.size:
        raise ConfigError(f"dimensions must be between 1 and {pooling.size} (not {dimensions!r})")
    texts = _checked_texts("texts", [texts] if isinstance(texts, str) else texts)
    if is_query or instruction is not None:
        task = DEFAULT_INSTRUCTION if instruction is None else instruction
        texts = [_QUERY_FORMAT.format(instruction=task, query=text) for text in texts]
    end = [] if pooling.end_token is None else [pooling.end_token]
    sequences = [[*engine.tokenize(text, parse_special=False), *end] for text in texts]
    for index, tokens in enumerate(sequences):
        if not tokens:
            raise ConfigError(f"texts[{index}] is empty, and this model has no token for that")
    vectors = engine.pooled(sequences, is_cancelled=is_cancelled)[:, :dimensions]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    result: NDArray[np.float32] = unit.astype(vectors.dtype, copy=False)
    return result


def rerank(
    engine: Engine,
    query: str,
    documents: Sequence[str],
    *,
    instruction: str | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[tuple[int, float]]:
    """Return documents by how well they answer a query. See Model.rerank()."""
    pooling = engine.info.pooling
    if pooling is None or pooling.kind != "rank":
        raise UnsupportedError(
            f"{_name(engine)} does not rerank: it is {_trade(pooling)}",
            hint="Load a reranker, such as qwen3-reranker-0.6b, converted with its head.",
        )
    if not pooling.rerank_template:
        raise UnsupportedError(
            f"{_name(engine)} has no prompt for reranking (tokenizer.chat_template.rerank)",
            hint="Convert its checkpoint again: qwen-edge convert CHECKPOINT -o FILE",
        )
    template = pooling.rerank_template.replace(DEFAULT_INSTRUCTION, "{instruction}")
    if instruction is not None and "{instruction}" not in template:
        raise UnsupportedError(
            "this reranker's prompt has no place for an instruction", hint="Leave instruction out."
        )
    if not isinstance(query, str):
        raise ConfigError(f"query must be text (not {type(query).__name__})")
    values = {"query": query, "instruction": DEFAULT_INSTRUCTION if instruction is None else instruction}
    sequences = [
        _rerank_tokens(engine, template, values | {"document": document})
        for document in _checked_texts("documents", documents)
    ]
    scores = engine.pooled(sequences, is_cancelled=is_cancelled)[:, 0]
    # Stable: of equal scores the earlier document comes first.
    order = np.argsort(-scores, kind="stable")
    return [(int(index), float(scores[index])) for index in order]


def _rerank_tokens(engine: Engine, template: str, values: Mapping[str, str]) -> list[int]:
    """Return the prompt's tokens. Control tokens are those of the template alone: in a document they are text."""
    tokens: list[int] = []
    for part in _CONTROL_TOKEN.split(template):
        is_control = _CONTROL_TOKEN.fullmatch(part) is not None
        # In one pass, so that "{document}" in a query stays what it is.
        text = _FIELD.sub(lambda match: values[match[1]], part)
        tokens += engine.tokenize(text, parse_special=is_control)
    return tokens


def _checked_texts(name: str, texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ConfigError(f"{name} must be a list of texts (not {type(texts).__name__})")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigError(f"{name}[{index}] must be text (not {type(text).__name__})")
    return texts


def _name(engine: Engine) -> str:
    return engine.info.name or "this model"


def _trade(pooling: PoolingInfo | None) -> str:
    if pooling is None:
        return "a model that chats"
    return "a reranker" if pooling.kind == "rank" else "an embedding model"


def check_chats(engine: Engine) -> None:
    """Check that a model is one to talk with.

    Raises:
        UnsupportedError: It is an embedding model or a reranker.
    """
    pooling = engine.info.pooling
    if pooling is not None:
        method = "rerank(query, documents)" if pooling.kind == "rank" else "embed(texts)"
        raise UnsupportedError(
            f"{_name(engine)} does not chat: it is {_trade(pooling)}", hint=f"Call model.{method}."
        )
