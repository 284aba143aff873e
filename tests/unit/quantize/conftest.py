"""An engine without a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen_edge.engines.base import Context, Engine, ModelInfo


class TableEngine(Engine):
    """Its next-token logits depend on the last token alone: a table, so that a test can know the answer."""

    def __init__(self, seed: int, n_vocab: int = 128) -> None:
        self.table = np.random.default_rng(seed).normal(0, 2, (n_vocab, n_vocab)).astype(np.float32)
        self.scored: list[list[int]] = []
        self.is_closed = False
        self.info = ModelInfo(
            path=None,
            engine="table",
            architecture="",
            name=f"table {seed}",
            chat_template="",
            special_texts={},
            n_vocab=n_vocab,
            n_params=self.table.size,
            n_ctx_train=1024,
            weights_bytes=self.table.nbytes,
            settings={},
        )

    def tokenize(self, text: str, *, parse_special: bool = True) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def is_end(self, token: int) -> bool:
        return False

    def new_context(self) -> Context:
        raise NotImplementedError("evaluation scores whole windows")

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.scored.append(list(tokens))
        rows: NDArray[np.float32] = self.table[list(tokens)]
        return rows

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def table_engine() -> type[TableEngine]:
    """Return the class: table_engine(seed, n_vocab=128)."""
    return TableEngine
