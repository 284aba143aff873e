"""One KV cache for several conversations: what belongs to different ones is evaluated in one call."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import LoadConfig
from qwen_edge.errors import ClosedError, NativeError
from qwen_edge.native import adapters as native_adapters
from qwen_edge.native import library
from qwen_edge.native.affinity import calling_thread_kept
from qwen_edge.native.handles import NativeModel, context_params, free_context, pinned_threads
from qwen_edge.native.token_batch import TokenBatch


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of one conversation, to be evaluated behind those it has.

    Attributes:
        sequence: Which conversation.
        position: Tokens it has already.
        tokens: What is added.
        logits: float32 [n_vocab] that receives the logits after the last token; None where nobody asks. OnnxCache also
            takes float32 [len(tokens), n_vocab], for those after each.
    """

    sequence: int
    position: int
    tokens: Sequence[int]
    logits: NDArray[np.float32] | None = None


class NativeBatchContext:
    """A context with room for several sequences. One thread at a time; calls wait for the one in flight."""

    def __init__(self, model: NativeModel, config: LoadConfig, n_threads: int, n_sequences: int) -> None:
        """Allocate a context.

        Args:
            model: Owner of the weights; must be open.
            config: n_ctx (of each sequence), n_batch, n_prefill_threads, affinity, flash_attention and kv_type are used.
            n_threads: CPU threads.
            n_sequences: Conversations that fit in.

        Raises:
            NativeError: llama.cpp refuses; most often memory.
            UnsupportedError: Threads cannot be bound to cores here.
        """
        self.model = model
        self._api = api = model._api
        self._lock = threading.RLock()
        self.n_ctx = config.n_ctx
        self.n_batch = max(min(config.n_batch, config.n_ctx), n_sequences)
        self.n_vocab = model.n_vocab
        self.n_sequences = n_sequences
        params = context_params(api, config, n_threads)
        # Each sequence has a part of its own: sharing one, every token would look at the tokens of all.
        params.kv_unified = False
        params.n_seq_max = n_sequences
        params.n_ctx = config.n_ctx * n_sequences
        params.n_batch = params.n_ubatch = self.n_batch
        params.n_outputs_max = max(params.n_outputs_max, n_sequences)
        library.clear_log()
        with library.interrupt_deferred():
            self._handle = api.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise NativeError(
                f"llama.cpp cannot make a context of {n_sequences} x {config.n_ctx} tokens: "
                f"{library.last_errors() or 'no reason given'}",
                hint="A smaller n_ctx or n_sessions needs less memory.",
            )
        self._memory = api.llama_get_memory(self._handle)
        self._batch = TokenBatch(api, self.n_batch)
        self._free = weakref.finalize(self, free_context, api, self._handle, self._batch.native)
        model._contexts.add(self)
        self._pinned = pinned_threads(api, self._handle, config, n_threads)
        if model._adapters:
            native_adapters.set_adapters(api, self._handle, model._adapters)

    @property
    def handle(self) -> Any:
        """The native pointer.

        Raises:
            ClosedError: After close().
        """
        if not self._free.alive:
            raise ClosedError("the model's shared context is closed")
        return self._handle

    def evaluate(self, parts: Sequence[Part]) -> None:
        """Evaluate parts of different sequences: those of one length in one native call.

        llama.cpp itself goes through the layers once for each length, but cuts longer parts where shorter ones end. A
        prompt beside a decode step would have one token evaluated alone, with other kernels than the rest.

        Raises:
            NativeError: llama.cpp failed; the caches are as before.
            ClosedError: After close().
        """
        count = sum(len(part.tokens) for part in parts)
        assert 0 < count <= self.n_batch, f"Bug: {count} tokens for a batch of {self.n_batch}"
        with self._lock:
            try:
                for length in sorted({len(part.tokens) for part in parts}):
                    self._decode([part for part in parts if len(part.tokens) == length])
            except NativeError:
                for part in parts:
                    self._api.llama_memory_seq_rm(self._memory, part.sequence, part.position, -1)
                raise

    def _decode(self, parts: Sequence[Part]) -> None:
        handle = self.handle
        rows: list[tuple[int, NDArray[np.float32]]] = []
        self._batch.clear()
        # llama.cpp takes together what belongs to neighbouring sequences in their order, and splits what does not.
        # Source: llama_batch_allocr::split_equal in src/llama-batch.cpp
        for part in sorted(parts, key=lambda part: part.sequence):
            wanted: Literal["none", "last"] = "none" if part.logits is None else "last"
            last = self._batch.add(part.tokens, part.position, part.sequence, wanted)
            if part.logits is not None:
                rows.append((last, part.logits))
        with calling_thread_kept() if self._pinned else contextlib.nullcontext():
            code = self._api.llama_decode(handle, self._batch.native)
        if code != 0:
            raise NativeError(
                f"llama_decode failed with code {code}: {library.last_errors() or 'no reason given'}"
            )
        for index, out in rows:
            pointer = self._api.llama_get_logits_ith(handle, index)
            out[:] = np.ctypeslib.as_array(pointer, shape=out.shape)

    def rewind(self, sequence: int, n_tokens: int) -> int:
        """Forget all but the first n_tokens of a sequence; return how many it has then."""
        with self._lock:
            assert self.handle, "Bug: handle raises when closed"
            if self._api.llama_memory_seq_rm(self._memory, sequence, n_tokens, -1):
                return n_tokens
            # Recurrent and sliding-window memories cannot be cut: start over.
            self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            return 0

    def close(self) -> None:
        """Free the context, after the call in flight has returned."""
        with self._lock:
            self._free()
            if self._pinned is not None:
                self._pinned.free()
