"""What a file with a pooling type makes of whole texts: embeddings, or a reranker's probabilities."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import LoadConfig
from qwen_edge.errors import CancelledError, ClosedError, ContextOverflowError, NativeError, UnsupportedError
from qwen_edge.native import adapters as native_adapters
from qwen_edge.native import library
from qwen_edge.native.handles import NativeModel, free_context
from qwen_edge.native.token_batch import TokenBatch
from qwen_edge.quant_types import TENSOR_TYPES

# Source: enum llama_pooling_type in include/llama.h.
_POOLING_NONE, _POOLING_RANK = 0, 4
# Source: LLAMA_MAX_SEQ in src/llama-cparams.h is 256; more than these bring no speed.
_MAX_TEXTS_AT_ONCE = 64


def pooled_output(
    model: NativeModel,
    texts: Sequence[Sequence[int]],
    config: LoadConfig,
    n_threads: int,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> NDArray[np.float32]:
    """Evaluate texts, each on its own, and return their pooled outputs.

    Short texts go through the model together, up to n_batch tokens at a time; a longer one goes alone.

    Args:
        model: Open weights, of a file with a pooling type.
        texts: Tokens of each whole text, as the model wants it (with its end token).
        config: n_ctx, n_batch and kv_type are used.
        n_threads: CPU threads.
        is_cancelled: Asked before each native call.

    Returns:
        float32 [n_texts, n_classes] for a reranker, else [n_texts, hidden_size], not normalised.

    Raises:
        UnsupportedError: The file has no pooling type.
        ContextOverflowError: A text has more tokens than n_ctx.
        NativeError: llama.cpp refuses or fails.
        CancelledError: is_cancelled() said so.
        ClosedError: The model is closed, or is being closed by another thread.
    """
    for index, tokens in enumerate(texts):
        assert tokens, "Bug: a text without tokens"
        if len(tokens) > config.n_ctx:
            raise ContextOverflowError(
                f"text {index} is {len(tokens)} tokens long and the context holds {config.n_ctx}",
                hint=f"Load with n_ctx of at least {len(tokens)}, or cut the text.",
            )
    batches = list(_batches(texts, min(config.n_batch, config.n_ctx)))
    n_tokens = max((sum(map(len, batch)) for batch in batches), default=1)
    n_texts = max(map(len, batches), default=1)
    with model.lock:
        context = _PoolingContext(model, n_tokens, n_texts, config, n_threads)
    try:
        results = []
        for batch in batches:
            if is_cancelled():
                raise CancelledError("cancelled between two batches of texts")
            results.append(context.evaluate(batch))
        return np.concatenate([np.empty((0, context.size), np.float32), *results])
    finally:
        context.close()


def pooled_size(model: NativeModel) -> int:
    """Return the length of one pooled output: the classes of a reranker, else the hidden size."""
    api = model._api
    is_reranker = model.metadata(_pooling_key(model)) == str(_POOLING_RANK)
    # A reranker's buffer holds its classes and nothing behind them.
    return int((api.llama_model_n_cls_out if is_reranker else api.llama_model_n_embd)(model.handle))


def pooling_type(model: NativeModel) -> int:
    """Return the file's pooling type (enum llama_pooling_type); 0 for none."""
    return int(model.metadata(_pooling_key(model)) or _POOLING_NONE)


def _pooling_key(model: NativeModel) -> str:
    return f"{model.metadata('general.architecture')}.pooling_type"


def _batches(texts: Sequence[Sequence[int]], n_batch: int) -> Iterator[list[Sequence[int]]]:
    """Yield neighbouring texts that go through the model together."""
    batch: list[Sequence[int]] = []
    for tokens in texts:
        if batch and (sum(map(len, batch)) + len(tokens) > n_batch or len(batch) == _MAX_TEXTS_AT_ONCE):
            yield batch
            batch = []
        batch.append(tokens)
    if batch:
        yield batch


class _PoolingContext:
    """A context that returns one vector for each sequence in a batch. Owned as NativeContext is."""

    def __init__(
        self, model: NativeModel, n_tokens: int, n_texts: int, config: LoadConfig, n_threads: int
    ) -> None:
        self._model = model
        self._api = api = model._api
        self._lock = threading.RLock()
        if pooling_type(model) == _POOLING_NONE:
            raise UnsupportedError(
                f"{model.path} has no pooling type: it is no embedding model and no reranker",
                hint="Convert a checkpoint with modules.json (embedding) or of a reranker.",
            )
        self.size = pooled_size(model)
        params = api.llama_context_default_params()
        # Pooling looks at all tokens of a text at once: they have to be in one batch.
        params.n_ctx = params.n_batch = params.n_ubatch = n_tokens
        params.n_seq_max = n_texts
        # One buffer that the texts share as they need, in place of an equal part for each.
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = config.n_prefill_threads or n_threads
        params.flash_attn_type = 0
        params.type_k = params.type_v = TENSOR_TYPES[config.kv_type.upper()].ggml_id
        params.offload_kqv = params.op_offload = False
        params.embeddings = True
        library.clear_log()
        with library.interrupt_deferred():
            self._handle = api.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise NativeError(
                f"llama.cpp cannot make a context: {library.last_errors() or 'no reason given'}",
                hint="A shorter text needs less memory.",
            )
        self._batch = TokenBatch(api, n_tokens)
        self._free = weakref.finalize(self, free_context, api, self._handle, self._batch.native)
        model._contexts.add(self)
        if model._adapters:
            native_adapters.set_adapters(api, self._handle, model._adapters)

    def evaluate(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return float32 [n_texts, size]."""
        api, batch = self._api, self._batch
        with self._lock:
            if not self._free.alive:
                raise ClosedError(f"the model {self._model.path.name} was closed meanwhile")
            api.llama_memory_clear(api.llama_get_memory(self._handle), False)
            batch.clear()
            for sequence, tokens in enumerate(texts):
                batch.add(tokens, 0, sequence, "all")
            code = api.llama_decode(self._handle, batch.native)
            if code != 0:
                raise NativeError(
                    f"llama_decode failed with code {code}: {library.last_errors() or 'no reason given'}"
                )
            result = np.empty((len(texts), self.size), dtype=np.float32)
            for sequence in range(len(texts)):
                pointer = api.llama_get_embeddings_seq(self._handle, sequence)
                result[sequence] = np.ctypeslib.as_array(pointer, (self.size,))
            return result

    def close(self) -> None:
        """Free the context, after the call in flight has returned."""
        with self._lock:
            self._free()
