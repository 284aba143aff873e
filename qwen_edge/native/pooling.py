"""What a file with a pooling type makes of a whole text: an embedding, or a reranker's probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import LoadConfig
from qwen_edge.errors import ContextOverflowError, NativeError, UnsupportedError
from qwen_edge.native import library
from qwen_edge.native.handles import NativeModel
from qwen_edge.quant_types import TENSOR_TYPES

# Source: enum llama_pooling_type in include/llama.h.
_POOLING_NONE, _POOLING_RANK = 0, 4


def pooled_output(
    model: NativeModel, tokens: Sequence[int], config: LoadConfig, n_threads: int
) -> NDArray[np.float32]:
    """Evaluate a text on an empty cache and return its pooled output.

    Args:
        model: Open weights, of a file with a pooling type.
        tokens: The whole text, as the model wants it (with its end token).
        config: n_ctx and kv_type are used.
        n_threads: CPU threads.

    Returns:
        float32 [n_classes] for a reranker, else [hidden_size], not normalised.

    Raises:
        UnsupportedError: The file has no pooling type.
        ContextOverflowError: More tokens than n_ctx.
        NativeError: llama.cpp refuses or fails.
    """
    count = len(tokens)
    assert count, "Bug: a text without tokens"
    if count > config.n_ctx:
        raise ContextOverflowError(f"{count} tokens do not fit in a context of {config.n_ctx}")
    api = model._api
    params = api.llama_context_default_params()
    # Pooling looks at all tokens of a text at once: they have to be in one batch.
    params.n_ctx = params.n_batch = params.n_ubatch = count
    params.n_seq_max = 1
    params.n_threads = params.n_threads_batch = n_threads
    params.flash_attn_type = 0
    params.type_k = params.type_v = TENSOR_TYPES[config.kv_type.upper()].ggml_id
    params.offload_kqv = params.op_offload = False
    params.embeddings = True
    library.clear_log()
    with library.interrupt_deferred():
        context = api.llama_init_from_model(model.handle, params)
    if not context:
        raise NativeError(
            f"llama.cpp cannot make a context: {library.last_errors() or 'no reason given'}",
            hint="A shorter text needs less memory.",
        )
    batch = api.llama_batch_init(count, 0, 1)
    try:
        pooling = api.llama_pooling_type(context)
        if pooling == _POOLING_NONE:
            raise UnsupportedError(
                f"{model.path} has no pooling type: it is no embedding model and no reranker",
                hint="Convert a checkpoint with modules.json (embedding) or of a reranker.",
            )
        batch.n_tokens = count
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        code = api.llama_decode(context, batch)
        if code != 0:
            raise NativeError(
                f"llama_decode failed with code {code}: {library.last_errors() or 'no reason given'}"
            )
        # A reranker's buffer holds its classes and nothing behind them.
        size = (api.llama_model_n_cls_out if pooling == _POOLING_RANK else api.llama_model_n_embd)(
            model.handle
        )
        values: NDArray[np.float32] = np.ctypeslib.as_array(
            api.llama_get_embeddings_seq(context, 0), (size,)
        ).copy()
        return values
    finally:
        api.llama_batch_free(batch)
        api.llama_free(context)
