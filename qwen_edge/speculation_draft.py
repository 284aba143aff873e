"""Proposals from a small model of the same vocabulary."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import GREEDY
from qwen_edge.engines.base import Engine
from qwen_edge.errors import ConfigError
from qwen_edge.speculation_gain import DRAFT_KIND
from qwen_edge.speculation_proposer import Proposal, Proposer

# A draft ends where the draft model itself gives its token less than this.
_LEAST_PROBABILITY = 0.4
# Tokens drafted at first; two more after a draft that came true as a whole, one less after another.
_FIRST_LENGTH = 4
# What the draft model has to catch up with is part of proposing; more is reading a prompt.
_MOST_CAUGHT_UP = 32


def check_same_vocabulary(engine: Engine, draft: Engine) -> None:
    """Check that two models have the same tokens under the same ids.

    Raises:
        ConfigError: They do not.
    """
    problem = _difference(engine, draft)
    if problem is not None:
        raise ConfigError(
            f"{draft.info.path} cannot draft for {engine.info.path}: {problem}",
            hint="A draft model is a smaller one of the same family, say qwen3-0.6b for qwen3-4b.",
        )


def _difference(engine: Engine, draft: Engine) -> str | None:
    ours, theirs = engine.info.n_vocab, draft.info.n_vocab
    if ours != theirs:
        return f"its vocabulary has {theirs:,} tokens, the model's {ours:,}"
    for token in range(ours):
        a, b = engine.token_bytes(token), draft.token_bytes(token)
        if a != b:
            return f"its token {token} is {b!r}, the model's {a!r}"
    return None


class DraftProposer(Proposer):
    """Lets a small model write on, each time its likeliest token.

    Its KV cache follows the text: cut where proposals did not come true, extended by what came instead. It is brought up
    to date when something is to be proposed, so a session that does not speculate does not pay for it.
    """

    is_free = False

    def __init__(self, draft: Engine) -> None:
        """Begin a session.

        Raises:
            NativeError: No memory for its KV cache.
        """
        self._is_end = draft.is_end
        self._context = draft.new_context()
        self._context.start_sampling(GREEDY)
        self._text: list[int] = []
        self._cached: list[int] = []  # what the KV cache holds
        self._agreed = 0  # of the tokens in it, the leading ones that are the text's
        self._drafted_to = 0  # length of the text with the last draft behind it
        self._length = _FIRST_LENGTH
        self._reading_s = 0.0

    def follow(self, tokens: Sequence[int]) -> None:
        """See Proposer.follow."""
        self._text, self._agreed = [], 0
        self.extend(tokens)
        self._drafted_to = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """See Proposer.extend."""
        text, cached = self._text, self._cached
        for token in tokens:
            if self._agreed == len(text) and self._agreed < len(cached):
                self._agreed += cached[self._agreed] == token
            text.append(token)

    def propose(self, most: int) -> Sequence[Proposal]:
        """See Proposer.propose."""
        self._reading_s = 0.0
        self._adapt()
        room = self._context.n_ctx - len(self._text)
        most = min(most, self._length, room)
        if most <= 0:
            return ()
        self._catch_up()
        proposals: list[Proposal] = []
        while True:
            token, probability = _likeliest(self._context.logits())
            if probability < _LEAST_PROBABILITY or self._is_end(token):
                break
            proposals.append(Proposal(token, DRAFT_KIND))
            if len(proposals) == most:
                break
            self._append((token,))
        self._drafted_to = len(self._text) + len(proposals) if proposals else 0
        return proposals

    def uncounted_s(self) -> float:
        """See Proposer.uncounted_s."""
        return self._reading_s

    def cancel(self) -> None:
        """See Proposer.cancel."""
        self._context.cancel()

    def clear_cancel(self) -> None:
        """See Proposer.clear_cancel."""
        self._context.clear_cancel()

    def close(self) -> None:
        """See Proposer.close."""
        self._context.close()

    def _adapt(self) -> None:
        """Choose the length of the next draft by what became of the last."""
        if self._drafted_to:
            came_true = len(self._text) > self._drafted_to
            self._length = self._length + 2 if came_true else max(1, self._length - 1)
            self._length = min(self._length, _MOST_CAUGHT_UP // 2)

    def _catch_up(self) -> None:
        """Bring the KV cache to the text, and have the logits behind it."""
        text = self._text
        self._context.rewind(min(self._agreed, self._context.n_past, len(text) - 1))
        kept = self._context.n_past  # 0, for a memory that cannot be cut
        del self._cached[kept:]
        start = time.perf_counter()
        n_batch = self._context.n_batch
        for begin in range(kept, len(text), n_batch):
            self._append(text[begin : begin + n_batch])
        if len(text) - kept > _MOST_CAUGHT_UP:
            self._reading_s = time.perf_counter() - start
        self._agreed = len(text)

    def _append(self, tokens: Sequence[int]) -> None:
        self._context.append(tokens)
        self._cached += tokens


def _likeliest(logits: NDArray[np.float32]) -> tuple[int, float]:
    """Return the likeliest token and its probability."""
    best = int(np.argmax(logits))
    return best, 1.0 / float(np.exp(logits - logits[best]).sum())
