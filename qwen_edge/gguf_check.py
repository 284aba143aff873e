"""Whether llama.cpp can be given a model file: it ends the whole process at some values instead of refusing them.

Found by changing every value of a file and loading it; the places in llama.cpp 0c1e570 stand beside each check. What it
refuses by itself is left to it.
"""

from __future__ import annotations

import os
from collections import Counter

from qwen_edge.errors import GGUFError, UnsupportedError
from qwen_edge.gguf_header import GGUFHeader, read_header, read_texts

# Source: LLAMA_MAX_LAYERS in src/llama-hparams.h.
_MAX_LAYERS = 512
_REFETCH = "Download or convert it again."


def check_model_file(path: str | os.PathLike[str]) -> None:
    """Check a GGUF file before llama.cpp reads it.

    Raises:
        ModelNotFoundError: No such file.
        GGUFError: It is damaged, or has a value at which llama.cpp would end the process.
        OSError: It cannot be read.
    """
    try:
        header = read_header(path)
    except UnsupportedError:
        return  # llama.cpp may know the type, and says so if not
    _check_layers(header)
    _check_epsilons(header)
    _check_tokens(header)


def _check_layers(header: GGUFHeader) -> None:
    # GGML_ASSERTs behind LLM_KV_BLOCK_COUNT in src/llama-model.cpp, load_hparams.
    architecture = header.metadata.get("general.architecture")
    n_layers = header.metadata.get(f"{architecture}.block_count", 1)
    n_extra = header.metadata.get(f"{architecture}.nextn_predict_layers", 0)
    if isinstance(n_layers, int) and not 0 < n_layers <= _MAX_LAYERS:
        raise GGUFError(
            f"{header.path} is damaged: {architecture}.block_count is {n_layers}, expected 1 to {_MAX_LAYERS}",
            hint=_REFETCH,
        )
    if isinstance(n_layers, int) and isinstance(n_extra, int) and n_extra > n_layers:
        raise GGUFError(
            f"{header.path} is damaged: {architecture}.nextn_predict_layers is {n_extra}, of {n_layers} layers",
            hint=_REFETCH,
        )


def _check_epsilons(header: GGUFHeader) -> None:
    # GGML_ASSERT(eps >= 0) in ggml/src/ggml-cpu/ops.cpp; not a number is not either.
    for key, value in header.metadata.items():
        if key.endswith("epsilon") and isinstance(value, float) and not value >= 0:
            raise GGUFError(f"{header.path} is damaged: {key} is {value}, expected 0 or more", hint=_REFETCH)


def _check_tokens(header: GGUFHeader) -> None:
    # GGML_ASSERT(id_to_token.size() == token_to_id.size()) in src/llama-vocab.cpp.
    # A text ends at its first zero byte there; empty ones get names of their own.
    texts = (text.partition(b"\0")[0] for text in read_texts(header, "tokenizer.ggml.tokens"))
    tokens = [text for text in texts if text]
    if len(set(tokens)) < len(tokens):
        twice, _ = Counter(tokens).most_common(1)[0]
        text = twice[:40].decode("utf-8", "replace")
        raise GGUFError(
            f"{header.path} is damaged: the token {text!r} stands twice in its vocabulary", hint=_REFETCH
        )
