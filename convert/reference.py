"""Qwen3 and Qwen2 computed in numpy, float32, straight from a checkpoint: the oracle for every file made from it.

::

    x = embedding of the tokens
    for each layer:
        x = x + attention(norm(x))            causal, grouped queries, rotary positions
        x = x + feed_forward(norm(x))         SwiGLU
    logits = norm(x) times the head           the embedding, where the head is tied

One layer's weights are in memory at a time, and the embedding in slices, so that a model that is larger than memory
can be computed. All sequences go through a layer before the next is read.

Source: arXiv 2505.09388 (Qwen3), 2412.15115 (Qwen2.5), 2305.13245 (grouped queries), 2104.09864 (rotary positions),
1910.07467 (RMS norm), 2002.05202 (SwiGLU).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qwen_edge.convert.checkpoint import Checkpoint
from qwen_edge.convert.matching import match_tensors
from qwen_edge.convert.qwen import QwenConfig, parse_config
from qwen_edge.convert.rows import read_tensor, row_slices
from qwen_edge.convert.tensor_source import TensorSource
from qwen_edge.errors import ConfigError

Array = NDArray[np.float32]
Observer = Callable[[str, Array], None]


class Reference:
    """A checkpoint as a function of tokens.

    Attributes:
        config: Its parameters.
        tensors: Where each tensor is read, by its name without "model.".
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Check a checkpoint; no weight is read.

        Raises:
            CheckpointError: It is incomplete or contradicts its config.json.
            UnsupportedError: It is no dense Qwen3 or Qwen2 model.
        """
        self.config = parse_config(checkpoint.config, str(checkpoint.folder / "config.json"))
        found, _ = match_tensors(checkpoint, self.config)
        self.tensors: dict[str, TensorSource] = {expected.name: entry for expected, entry in found}

    def hidden_states(
        self, sequences: Sequence[Sequence[int]], observer: Observer | None = None
    ) -> list[Array]:
        """Return the final norm's output after each token.

        Args:
            sequences: Token ids, each sequence on its own from position 0.
            observer: Called with (name, inputs) before each matrix of a layer: its name in the checkpoint without
                "model.", and float32 [n_tokens, columns] of one sequence. Calibration takes its statistics there.

        Returns:
            For each sequence float32 [n_tokens, hidden_size].

        Raises:
            ConfigError: A sequence is empty, or a token is not in the vocabulary.
            CheckpointError, OSError: The weights cannot be read.
        """
        self._check_tokens(sequences)
        states = self._embed(sequences)
        for layer in range(self.config.n_layers):
            block = _Layer(self.config, self._layer_weights(layer), f"layers.{layer}", observer)
            states = [block(state) for state in states]
        weight = read_tensor(self.tensors["norm.weight"])
        return [_rms_norm(state, weight, self.config.rms_norm_eps) for state in states]

    def logits(self, sequences: Sequence[Sequence[int]], observer: Observer | None = None) -> list[Array]:
        """Return the logits after each token: row i predicts token i + 1.

        Args and Raises as hidden_states().

        Returns:
            For each sequence float32 [n_tokens, vocab_size].
        """
        return self.head(self.hidden_states(sequences, observer))

    def head(self, states: Sequence[Array]) -> list[Array]:
        """Return the logits that the output of hidden_states() gives.

        Raises:
                CheckpointError, OSError: The weights cannot be read.
        """
        results = [np.empty((len(state), self.config.vocab_size), np.float32) for state in states]
        # A classifier has no head for tokens; llama.cpp takes the embedding where there is none.
        head = self.tensors.get("lm_head.weight", self.tensors["embed_tokens.weight"])
        for first, rows in row_slices(head):
            for state, result in zip(states, results, strict=True):
                np.matmul(state, rows.T, out=result[:, first : first + len(rows)])
        return results

    def _check_tokens(self, sequences: Sequence[Sequence[int]]) -> None:
        for sequence in sequences:
            if not sequence or not all(0 <= token < self.config.vocab_size for token in sequence):
                raise ConfigError(
                    f"a sequence must have at least one token, each in 0..{self.config.vocab_size - 1}"
                )

    def _embed(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        tokens = np.concatenate([np.asarray(sequence, np.int64) for sequence in sequences])
        embedded = np.empty((len(tokens), self.config.hidden_size), np.float32)
        for first, rows in row_slices(self.tensors["embed_tokens.weight"]):
            here = (tokens >= first) & (tokens < first + len(rows))
            embedded[here] = rows[tokens[here] - first]
        return np.split(embedded, np.cumsum([len(sequence) for sequence in sequences])[:-1])

    def _layer_weights(self, layer: int) -> dict[str, Array]:
        prefix = f"layers.{layer}."
        return {
            name.removeprefix(prefix): read_tensor(entry)
            for name, entry in self.tensors.items()
            if name.startswith(prefix)
        }


class _Layer:
    """One transformer block; `weights` are named as in the checkpoint, without the layer."""

    def __init__(
        self, config: QwenConfig, weights: dict[str, Array], name: str, observer: Observer | None
    ) -> None:
        self.config = config
        self.weights = weights
        self.name = name
        self.observer = observer

    def __call__(self, x: Array) -> Array:
        x = x + self._attention(self._norm("input_layernorm", x))
        return x + self._feed_forward(self._norm("post_attention_layernorm", x))

    def _attention(self, x: Array) -> Array:
        config = self.config
        n_tokens, group = len(x), config.n_heads // config.n_kv_heads
        query: Array = self._linear("self_attn.q_proj", x).reshape(n_tokens, config.n_heads, config.head_dim)
        key: Array = self._linear("self_attn.k_proj", x).reshape(n_tokens, config.n_kv_heads, config.head_dim)
        value: Array = self._linear("self_attn.v_proj", x).reshape(
            n_tokens, config.n_kv_heads, config.head_dim
        )
        if config.architecture == "qwen3":
            query, key = self._norm("self_attn.q_norm", query), self._norm("self_attn.k_norm", key)
        query, key = _rotate(query, config), _rotate(key, config)

        # [kv heads, query heads of each, tokens, head_dim]; keys and values are shared by a group.
        query = query.transpose(1, 0, 2).reshape(config.n_kv_heads, group, n_tokens, config.head_dim)
        key, value = key.transpose(1, 2, 0)[:, None], value.transpose(1, 0, 2)[:, None]
        scores = query @ key * np.float32(1 / math.sqrt(config.head_dim))
        scores[..., np.triu(np.ones((n_tokens, n_tokens), bool), 1)] = -np.inf
        mixed = (_softmax(scores) @ value).reshape(config.n_heads, n_tokens, config.head_dim)
        return self._linear("self_attn.o_proj", mixed.transpose(1, 0, 2).reshape(n_tokens, -1))

    def _feed_forward(self, x: Array) -> Array:
        gate = self._linear("mlp.gate_proj", x)
        return self._linear("mlp.down_proj", _silu(gate) * self._linear("mlp.up_proj", x))

    def _linear(self, name: str, x: Array) -> Array:
        if self.observer is not None:
            self.observer(f"{self.name}.{name}.weight", x)
        result: Array = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        return result if bias is None else result + bias

    def _norm(self, name: str, x: Array) -> Array:
        return _rms_norm(x, self.weights[f"{name}.weight"], self.config.rms_norm_eps)


def _rms_norm(x: Array, weight: Array, eps: float) -> Array:
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    result: Array = (x / np.sqrt(mean_square + np.float32(eps)) * weight).astype(x.dtype, copy=False)
    return result


def _rotate(x: Array, config: QwenConfig) -> Array:
    """Turn each pair (i, i + head_dim / 2) by its angle: float32 [n_tokens, heads, head_dim]."""
    rope = config.rope
    angles = np.arange(len(x))[:, None, None] * rope.frequencies(config.head_dim)
    scale = rope.scaling.attention_factor if rope.scaling is not None else 1.0
    cosine, sine = (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def _softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: Array = (weights / weights.sum(axis=-1, keepdims=True)).astype(scores.dtype, copy=False)
    return result


def _silu(x: Array) -> Array:
    # x * sigmoid(x), in a form that cannot overflow.
    result: Array = x * (np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * x))
    return result
