"""Keys and values of one or several conversations, in place, and the calls that extend them.

::

    key of layer 0, float32 [rows, heads, n_ctx, head_dim]      row 0: session 1    ████████░░░░
    value of layer 0                                            row 1: session 2    ███░░░░░░░░░
    key of layer 1 …                                            row 2: free         ░░░░░░░░░░░░

Several rows that add one token each are one call, over a contiguous range of rows: a row in between that has nothing to
add computes a token that nobody asked for, and writes it where its own next one will go. Attention on the CPU takes
several tokens of one row only, so prompts are calls of their own, on a view of the same buffers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge.engines.onnx_runtime import Binding, Call, OnnxGraph
from qwen_edge.errors import CancelledError, ClosedError, FormatError
from qwen_edge.native.batch import Part

# A saved state: magic, tokens, caches, heads, head_dim, each uint32, then the used part of each cache.
_MAGIC = 0x514F4E58
_HEAD = np.dtype("<u4")
# Bindings of ranges of rows that are kept; each is a few kilobytes.
_KEPT_BINDINGS = 64

Array = NDArray[np.float32]


class OnnxCache:
    """The buffers, and how much of each row is used. One call at a time."""

    def __init__(
        self, graph: OnnxGraph, *, n_rows: int, n_ctx: int, n_batch: int, weights_bytes: int
    ) -> None:
        """Allocate. The memory is taken as it is written to.

        Args:
            graph: Whose caches.
            n_rows: Conversations.
            n_ctx: Tokens of each.
            n_batch: Most tokens that one call adds.
            weights_bytes: What a call reads of weights; decides whether rows in between are computed too.
        """
        self.n_ctx = n_ctx
        self.n_batch = n_batch
        self.n_vocab = graph.n_vocab
        self.lock = threading.RLock()
        self._graph: OnnxGraph | None = graph
        self._caches = [
            np.zeros((n_rows, each.n_heads, n_ctx, each.head_dim), np.float32) for each in graph.caches
        ]
        self._lengths = np.zeros(n_rows, np.int64)
        self._mask = np.ones((1, n_ctx), np.int64)
        self._bindings: dict[tuple[int, int], Binding] = {}
        # Of decode steps, in one place so that they are bound once. A row that nobody asked for computes what was there.
        self._step_tokens = np.zeros((n_rows, 1), np.int64)
        self._first_position = np.zeros(1, np.int64)
        token_bytes = sum(each.n_heads * each.head_dim for each in graph.caches) * 4
        # Reading the keys and values of rows in between must cost less than reading the weights once more.
        self._most_idle_tokens = weights_bytes // token_bytes

    def length(self, row: int) -> int:
        """Return the tokens of a row."""
        return int(self._lengths[row])

    def check_open(self) -> None:
        """Raise ClosedError after close()."""
        if self._graph is None:
            raise ClosedError("the context is closed")

    def rewind(self, sequence: int, n_tokens: int) -> int:
        """Forget all but the first n_tokens of a row; return how many it has then."""
        self._lengths[sequence] = n_tokens
        return n_tokens

    def evaluate(self, parts: Sequence[Part], begin: Callable[[Call], None] = lambda call: None) -> None:
        """Evaluate parts of different rows.

        Args:
            parts: At most one of each row.
            begin: Gets each call before it is made, and may stop it.

        Raises:
            NativeError: ONNX Runtime failed; the rows are as before.
            ClosedError: After close().
        """
        with self.lock:
            self.check_open()
            try:
                steps = sorted(
                    (part for part in parts if len(part.tokens) == 1), key=lambda part: part.sequence
                )
                for group in self._groups(steps):
                    self._step(group, begin)
                for part in parts:
                    if len(part.tokens) > 1:
                        self._read(part, begin)
            except BaseException:
                for part in parts:
                    self._lengths[part.sequence] = part.position
                raise

    def score(self, tokens: Sequence[int], logits: Array) -> None:
        """Evaluate tokens on the first row, behind what it has, and give the logits of all of them.

        Args:
            tokens: At most n_batch.
            logits: float32 [len(tokens), n_vocab], receives them.
        """
        with self.lock:
            self.check_open()
            positions = np.arange(len(tokens), dtype=np.int64)
            self._run(0, np.array([tokens], np.int64), positions, logits[np.newaxis], Call())
            self._lengths[0] += len(tokens)

    def _groups(self, steps: Sequence[Part]) -> list[list[Part]]:
        """Bring steps into groups whose rows are one call: what lies between must have room, and be cheap."""
        groups: list[list[Part]] = []
        for part in steps:
            if groups:
                between = self._lengths[groups[-1][-1].sequence + 1 : part.sequence]
                if (between < self.n_ctx).all() and between.sum() <= self._most_idle_tokens:
                    groups[-1].append(part)
                    continue
            groups.append([part])
        return groups

    def _step(self, group: Sequence[Part], begin: Callable[[Call], None]) -> None:
        """Add one token to each of some rows."""
        first, end = group[0].sequence, group[-1].sequence + 1
        tokens = self._step_tokens[: end - first]
        for part in group:
            self._lengths[part.sequence] = part.position
            tokens[part.sequence - first] = part.tokens[0]
        has_logits = any(part.logits is not None for part in group)
        out = group[0].logits
        if len(group) == 1 and out is not None:
            logits = out.reshape(1, 1, -1)
        else:
            logits = np.empty((end - first, int(has_logits), self.n_vocab), np.float32)
        call = Call()
        begin(call)
        self._run(first, tokens, self._first_position[: int(has_logits)], logits, call)
        for part in group:
            self._lengths[part.sequence] += 1
            if part.logits is not None and len(group) > 1:
                part.logits[:] = logits[part.sequence - first, 0]

    def _read(self, part: Part, begin: Callable[[Call], None]) -> None:
        """Add several tokens to one row."""
        self._lengths[part.sequence] = part.position
        tokens = np.array([part.tokens], np.int64)
        if part.logits is None:
            positions, logits = np.empty(0, np.int64), np.empty((1, 0, self.n_vocab), np.float32)
        else:
            logits = np.atleast_2d(part.logits)[np.newaxis]
            positions = np.arange(len(part.tokens) - logits.shape[1], len(part.tokens), dtype=np.int64)
        call = Call()
        begin(call)
        self._run(part.sequence, tokens, positions, logits, call)
        self._lengths[part.sequence] += len(part.tokens)

    def _run(
        self, first: int, tokens: NDArray[np.int64], positions: NDArray[np.int64], logits: Array, call: Call
    ) -> None:
        """Make one call over the rows from `first` on, each of which gets a row of tokens."""
        n_rows, n_tokens = tokens.shape
        ends = self._lengths[first : first + n_rows] + n_tokens
        if n_rows == 1:
            mask = self._mask[:, : int(ends[0])]
        else:
            mask = (np.arange(int(ends.max())) < ends[:, np.newaxis]).astype(np.int64)
        self._binding(first, n_rows).run(tokens, mask, positions, logits, call)

    def _binding(self, first: int, n_rows: int) -> Binding:
        binding = self._bindings.get((first, n_rows))
        if binding is None:
            assert self._graph is not None, "Bug: evaluated after close()"
            if len(self._bindings) >= _KEPT_BINDINGS:
                self._bindings.clear()
            binding = self._graph.bind([cache[first : first + n_rows] for cache in self._caches])
            self._bindings[first, n_rows] = binding
        return binding

    def save(self, row: int) -> NDArray[np.uint8]:
        """Return the used part of a row as bytes."""
        with self.lock:
            self.check_open()
            n_tokens = self.length(row)
            parts = [self._head(n_tokens).view(np.uint8)]
            parts += [cache[row, :, :n_tokens].reshape(-1).view(np.uint8) for cache in self._caches]
            return np.concatenate(parts)

    def load(self, row: int, data: Any, n_tokens: int) -> None:
        """Put saved bytes in place of a row.

        Raises:
            FormatError: They are damaged, or of another model. The row is empty.
        """
        state = np.frombuffer(data, np.uint8)
        with self.lock:
            self.check_open()
            self._lengths[row] = 0
            head = self._head(n_tokens).view(np.uint8)
            sizes = [cache.shape[1] * n_tokens * cache.shape[3] for cache in self._caches]
            problem = ""
            if n_tokens > self.n_ctx:
                problem = f"it holds {n_tokens} tokens, the context {self.n_ctx}"
            elif len(state) != len(head) + 4 * sum(sizes):
                problem = f"it has {len(state)} bytes, {n_tokens} tokens take {len(head) + 4 * sum(sizes)}"
            elif not np.array_equal(state[: len(head)], head):
                problem = "it begins as no state of this model with so many tokens does"
            if problem:
                raise FormatError(f"a saved KV cache does not fit this context: {problem}")
            at = len(head)
            for cache, size in zip(self._caches, sizes, strict=True):
                values = state[at : at + 4 * size].view(np.float32)
                cache[row, :, :n_tokens] = values.reshape(cache.shape[1], n_tokens, cache.shape[3])
                at += 4 * size
            self._lengths[row] = n_tokens

    def _head(self, n_tokens: int) -> NDArray[Any]:
        _, n_heads, _, head_dim = self._caches[0].shape
        return np.array([_MAGIC, n_tokens, len(self._caches), n_heads, head_dim], _HEAD)

    def close(self) -> None:
        """Free the buffers, after the call in flight."""
        with self.lock:
            self._graph = None
            self._bindings.clear()
            self._caches = []


class Stopper:
    """Whether a context was cancelled, and its call in flight."""

    def __init__(self) -> None:
        self.is_set = False
        self._call: Call | None = None

    def begin(self, call: Call) -> None:
        """Note the call that stop() is to end.

        Raises:
            CancelledError: stop() was called before.
        """
        self._call = call
        if self.is_set:
            raise CancelledError("cancelled before evaluation")

    def stop(self) -> None:
        """End the call in flight and those to come."""
        self.is_set = True
        call = self._call
        if call is not None:
            call.stop()
