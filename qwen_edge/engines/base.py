"""The seam: what the session needs of an engine, and nothing else.

::

    Engine            weights and vocabulary
      └── Context     one KV cache: append tokens, rewind, sample from the last (or a selected) token's logits

`engines/fake.py` implements it in a page and is public, for tests of everything above.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import LoadConfig, SamplingConfig
from qwen_edge.errors import UnsupportedError


class MemoryWatch(Protocol):
    """Asked before an engine takes memory; see memory_guard. Each method raises InsufficientMemoryError to prevent it."""

    def before_weights(self, progress: float) -> None:
        """Before the rest of the weights is read; `progress` is the share that is."""

    def before_context(self, config: LoadConfig) -> None:
        """Before a KV cache is made."""

    def batch_bytes(self, config: LoadConfig, n_tokens: int, n_past: int) -> int:
        """Return what a batch behind n_past tokens takes; 0 where that is not worth asking."""

    def before_batch(self, n_bytes: int) -> None:
        """Before batches take so much more than they did."""

    def before_state(self, config: LoadConfig, n_tokens: int) -> None:
        """Before the KV cache of n_tokens is copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingInfo:
    """What a model makes of a whole text, where that is its trade.

    Attributes:
        kind: "mean", "cls" or "last" for an embedding, taken from all, the first or the last token; "rank" for a
            reranker's probabilities, the wanted class first.
        size: Length of the result.
        end_token: Wanted behind each text; None for none.
        rerank_template: A reranker's prompt with {query} and {document}; "" for none.
    """

    kind: Literal["mean", "cls", "last", "rank"]
    size: int
    end_token: int | None = None
    rerank_template: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Facts of a loaded model.

    Attributes:
        path: The file or folder, or None for an engine without one.
        engine: Name of the engine: "llama.cpp", "onnxruntime", "fake".
        architecture: As the file says: "qwen3", "qwen2".
        name: The file's name for the model, "" when it has none.
        chat_template: Jinja source, "" when the file has none.
        special_texts: Values of bos_token and eos_token for the template.
        n_vocab: Rows of the embedding, which is the length of the logits.
        n_params: Weights.
        n_ctx_train: Context the model was trained for, in tokens.
        weights_bytes: Bytes of all tensors.
        settings: What the engine runs with: threads, n_ctx, flash_attention and so on, JSON-ready.
        pooling: Of an embedding model or a reranker; None for a model that chats.
    """

    path: Path | None
    engine: str
    architecture: str
    name: str
    chat_template: str
    special_texts: dict[str, str]
    n_vocab: int
    n_params: int
    n_ctx_train: int
    weights_bytes: int
    settings: dict[str, Any]
    pooling: PoolingInfo | None = None


class TokenConstraint(Protocol):
    """Which tokens may come next; what it allows does not change until the token is sampled."""

    def allows(self, token: int) -> bool:
        """Return whether a token may come next."""

    def mask(self) -> NDArray[np.uint32]:
        """Return all tokens that may come next: uint32 [ceil(n_vocab / 32)], token i is bit i % 32 of word i // 32.

        At least one bit is set. The array may be overwritten by the next call.
        """


class Context(ABC):
    """One KV cache and the means to extend it. One thread at a time; calls wait for the one in flight."""

    n_ctx: int
    """Tokens it can hold."""
    n_batch: int
    """Most tokens that one append() takes."""

    @property
    @abstractmethod
    def n_past(self) -> int:
        """Tokens in the cache."""

    @abstractmethod
    def append(self, tokens: Sequence[int], *, wants_logits: bool = True) -> None:
        """Evaluate 1 to n_batch tokens behind those in the cache.

        Args:
            tokens: Token ids.
            wants_logits: Whether the last one's logits will be sampled from.

        Raises:
            ContextOverflowError: They do not fit.
            CancelledError: cancel() was called. The cache is as before the call, as with any error.
        """

    @property
    def most_kept_logits(self) -> int:
        """Most tokens of one append_all(); 0 for a context that cannot, or whose memory cannot be cut behind them."""
        return 0

    def append_all(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens as append() does, and keep the logits of all of them; the first one's are selected.

        Args:
            tokens: Token ids, 1 to most_kept_logits.

        Raises:
            ContextOverflowError, CancelledError: As append().
            UnsupportedError: most_kept_logits is 0.
        """
        raise UnsupportedError("this context keeps the logits of one token")

    def select(self, index: int) -> None:
        """Go on with the logits of another token of the last append_all(): what sample() and the others refer to.

        Args:
            index: Of the token. Those before it, and those drawn from their logits, are settled.

        Raises:
            UnsupportedError: most_kept_logits is 0.
        """
        raise UnsupportedError("this context keeps the logits of one token")

    @abstractmethod
    def rewind(self, n_tokens: int) -> None:
        """Keep the first n_tokens of the cache; a memory that cannot be cut is emptied (see n_past)."""

    @abstractmethod
    def start_sampling(self, config: SamplingConfig) -> None:
        """Begin a reply: the penalties' memory is empty, the random generator is seeded."""

    @abstractmethod
    def sample(self, constraint: TokenConstraint | None = None) -> int:
        """Return the next token, drawn from the logits of the last appended token, or of the selected one.

        Args:
            constraint: The token is one that it allows. It is asked for its mask only when the token drawn at first is
                refused; penalties know nothing of that one. None allows all.
        """

    @abstractmethod
    def logits(self) -> NDArray[np.float32]:
        """Return a copy of the last appended or selected token's logits, as the model computed them: float32 [n_vocab].

        To be called before sample(), which may change them.
        """

    @abstractmethod
    def forbid(self, tokens: Sequence[int]) -> None:
        """Rule tokens out for the next sample() from these logits; what is appended afterwards is free again."""

    @abstractmethod
    def cancel(self) -> None:
        """Make the append() in flight, and later ones, raise CancelledError. Callable from any thread."""

    @abstractmethod
    def clear_cancel(self) -> None:
        """Forget an earlier cancel()."""

    @abstractmethod
    def save_state(self) -> NDArray[np.uint8]:
        """Return the KV cache as bytes: uint8 [n_bytes], a copy that load_state() takes.

        Raises:
            UnsupportedError: The engine cannot save the memory of this model.
        """

    @abstractmethod
    def load_state(self, data: Any, n_tokens: int) -> None:
        """Put a saved KV cache in place of this one.

        Args:
            data: What save_state() of a context with an equal Engine.state_identity() returned; any buffer.
            n_tokens: Tokens in it.

        Raises:
            FormatError: It is damaged or does not fit. The cache is empty.
        """

    @abstractmethod
    def close(self) -> None:
        """Free it, after the call in flight. Any number of times."""


class Engine(ABC):
    """Weights and vocabulary of one model."""

    info: ModelInfo

    @abstractmethod
    def tokenize(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return the token ids of a text, without BOS or EOS.

        Args:
            text: Any text.
            parse_special: Read `<|im_start|>` and the like as the tokens they name.
        """

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token, which may end inside a UTF-8 character; b"" for control tokens."""

    @abstractmethod
    def is_end(self, token: int) -> bool:
        """Return whether a token ends the reply."""

    @abstractmethod
    def new_context(self) -> Context:
        """Allocate a KV cache of the loaded n_ctx.

        Raises:
            NativeError: The engine refuses; most often memory.
        """

    @abstractmethod
    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits after each token of a sequence that starts on an empty cache.

        Returns:
            float32 [len(tokens), n_vocab]; row i predicts token i + 1.

        Raises:
            ContextOverflowError: More tokens than n_ctx.
        """

    def pooled(
        self, texts: Sequence[Sequence[int]], *, is_cancelled: Callable[[], bool] = lambda: False
    ) -> NDArray[np.float32]:
        """Return what a model with pooling makes of whole texts, each on its own.

        Args:
            texts: Tokens of each, at least one, with the end token where the model wants one.
            is_cancelled: Asked before each native call.

        Returns:
            float32 [len(texts), info.pooling.size]: embeddings as they come, not normalised, or probabilities.

        Raises:
            UnsupportedError: The model has no pooling.
            ContextOverflowError: A text has more tokens than n_ctx.
            CancelledError: is_cancelled() said so.
        """
        raise UnsupportedError(f"the engine {self.info.engine!r} has no embedding models and no rerankers")

    def state_identity(self) -> dict[str, Any] | None:
        """Return what a saved KV cache depends on besides its tokens: weights, build, types, adapters. JSON-ready.

        A state fits where this is equal. None: the engine cannot save states.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Free contexts, then weights. Any number of times."""
