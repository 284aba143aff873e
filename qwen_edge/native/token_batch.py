"""What llama.cpp's decode call is fed with: tokens, their positions and sequences, and whose logits are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class TokenBatch:
    """Room for the tokens of one call. Its owner frees `native` with llama_batch_free."""

    def __init__(self, api: Any, n_tokens: int) -> None:
        """Allocate room for n_tokens, each of one sequence."""
        self.native = native = api.llama_batch_init(n_tokens, 0, 1)
        shape = (n_tokens,)
        self._tokens: NDArray[np.int32] = np.ctypeslib.as_array(native.token, shape=shape)
        self._positions: NDArray[np.int32] = np.ctypeslib.as_array(native.pos, shape=shape)
        self._wants_logits: NDArray[np.int8] = np.ctypeslib.as_array(native.logits, shape=shape)
        self._sequences = [0] * n_tokens
        for i in range(n_tokens):
            native.n_seq_id[i] = 1
            native.seq_id[i][0] = 0
        native.n_tokens = 0

    def clear(self) -> None:
        """Take all tokens out."""
        self.native.n_tokens = 0

    def add(
        self,
        tokens: Sequence[int],
        position: int,
        sequence: int,
        wants_logits: Literal["none", "last", "all"],
    ) -> int:
        """Put tokens of one sequence behind those that are in.

        Args:
            tokens: Token ids; they fit in.
            position: Of the first one in its sequence.
            sequence: Which one.
            wants_logits: Of which tokens logits are computed, or embeddings where the context makes those.

        Returns:
            Index of the last one in the batch.
        """
        start: int = self.native.n_tokens
        end = start + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._wants_logits[start:end] = wants_logits == "all"
        if wants_logits == "last":
            self._wants_logits[end - 1] = 1
        for i in range(start, end):
            if self._sequences[i] != sequence:
                self._sequences[i] = self.native.seq_id[i][0] = sequence
        self.native.n_tokens = end
        return end - 1
