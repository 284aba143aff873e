"""Qwen3, Qwen2 and Qwen2.5 (dense): what config.json says, and which tensors a checkpoint must then hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from qwen_edge.convert.json_files import Fields, shorten
from qwen_edge.convert.rope import Rope, read_rope
from qwen_edge.errors import CheckpointError, UnsupportedError

# config.json "architectures" -> GGUF architecture. The bare models are the bodies without "model." in the names; the
# classifiers have a head of few rows, which rerankers are published with.
ARCHITECTURES: dict[str, Literal["qwen2", "qwen3"]] = {
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3Model": "qwen3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2Model": "qwen2",
    "Qwen3ForSequenceClassification": "qwen3",
    "Qwen2ForSequenceClassification": "qwen2",
}

# Source: LLAMA_MAX_LAYERS in llama.cpp, src/llama-hparams.h
_MAX_LAYERS = 512
_MAX_SIZE = 2**24
_MAX_LABELS = 1000


@dataclass(frozen=True)
class QwenConfig:
    """The parameters of one model, checked.

    Attributes:
        architecture: As GGUF calls it.
        n_layers: Transformer blocks.
        hidden_size: Width of the residual stream.
        ffn_size: Inner width of the feed-forward network.
        n_heads: Query heads.
        n_kv_heads: Key and value heads.
        head_dim: Width of one head; `n_heads * head_dim` may differ from `hidden_size`.
        head_dim_is_stated: config.json gives `head_dim`, rather than leaving it at hidden_size / n_heads.
        vocab_size: Rows of the embedding, padding included.
        n_ctx_train: Tokens of context the model was trained for.
        rms_norm_eps: Added to the mean square in RMS norm.
        rope: Rotary positions.
        is_tied: The head is the embedding.
        n_labels: Classes of a sequence classifier, which has no other head; 0 for a language model.
    """

    architecture: Literal["qwen2", "qwen3"]
    n_layers: int
    hidden_size: int
    ffn_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    head_dim_is_stated: bool
    vocab_size: int
    n_ctx_train: int
    rms_norm_eps: float
    rope: Rope
    is_tied: bool
    n_labels: int = 0


@dataclass(frozen=True)
class ExpectedTensor:
    """A tensor that the checkpoint must hold.

    Attributes:
        name: In the checkpoint, without a leading "model.".
        gguf_name: In the GGUF file.
        shape: Rows first, as in the checkpoint.
    """

    name: str
    gguf_name: str
    shape: tuple[int, ...]


def parse_config(values: dict[str, Any], where: str) -> QwenConfig:
    """Read the parameters from config.json.

    Args:
        values: The document.
        where: Its path, for messages.

    Raises:
        CheckpointError: A parameter is missing or of a wrong type, or two contradict each other.
        UnsupportedError: The architecture is another, or the model uses something that would be lost.
    """
    fields = Fields(values, where)
    architecture = _architecture(fields)
    _refuse_unsupported(fields)
    hidden_size = fields.integer("hidden_size", low=1, high=_MAX_SIZE)
    n_heads = fields.integer("num_attention_heads", low=1, high=_MAX_SIZE)
    n_kv_heads = fields.integer("num_key_value_heads", low=1, high=n_heads)
    if n_heads % n_kv_heads:
        raise CheckpointError(
            f"{where}: {n_heads} attention heads cannot share {n_kv_heads} key-value heads evenly"
        )
    head_dim_is_stated = "head_dim" in fields
    if not head_dim_is_stated and hidden_size % n_heads:
        raise CheckpointError(
            f"{where} has no 'head_dim', and hidden_size {hidden_size} is not a multiple of {n_heads} heads"
        )
    n_ctx_train = fields.integer("max_position_embeddings", low=1, high=2**31 - 1)
    return QwenConfig(
        architecture=architecture,
        n_layers=fields.integer("num_hidden_layers", low=1, high=_MAX_LAYERS),
        hidden_size=hidden_size,
        ffn_size=fields.integer("intermediate_size", low=1, high=_MAX_SIZE),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=fields.integer("head_dim", low=1, high=_MAX_SIZE)
        if head_dim_is_stated
        else hidden_size // n_heads,
        head_dim_is_stated=head_dim_is_stated,
        vocab_size=fields.integer("vocab_size", low=1, high=_MAX_SIZE),
        n_ctx_train=n_ctx_train,
        rms_norm_eps=fields.number("rms_norm_eps", low=1e-12, high=1.0),
        rope=read_rope(fields, n_ctx_train),
        is_tied=fields.boolean("tie_word_embeddings", default=False),
        n_labels=_n_labels(fields),
    )


def expected_tensors(config: QwenConfig) -> list[ExpectedTensor]:
    """Return the tensors of the GGUF file in the order in which they are stored there."""
    hidden, vocab = config.hidden_size, config.vocab_size
    tensors = [ExpectedTensor("embed_tokens.weight", "token_embd.weight", (vocab, hidden))]
    for layer in range(config.n_layers):
        tensors += _layer_tensors(config, layer)
    tensors.append(ExpectedTensor("norm.weight", "output_norm.weight", (hidden,)))
    if config.n_labels:
        tensors.append(ExpectedTensor("score.weight", "cls.output.weight", (config.n_labels, hidden)))
    elif not config.is_tied:
        tensors.append(ExpectedTensor("lm_head.weight", "output.weight", (vocab, hidden)))
    return tensors


def _layer_tensors(config: QwenConfig, layer: int) -> Iterator[ExpectedTensor]:
    hidden, ffn = config.hidden_size, config.ffn_size
    q_rows = config.n_heads * config.head_dim
    kv_rows = config.n_kv_heads * config.head_dim
    # Source: gguf-py, tensor_mapping.py, and llama.cpp's loaders of "qwen2" and "qwen3".
    rows: list[tuple[str, str, tuple[int, ...]]] = [
        ("input_layernorm.weight", "attn_norm.weight", (hidden,)),
        ("self_attn.q_proj.weight", "attn_q.weight", (q_rows, hidden)),
        ("self_attn.k_proj.weight", "attn_k.weight", (kv_rows, hidden)),
        ("self_attn.v_proj.weight", "attn_v.weight", (kv_rows, hidden)),
        ("self_attn.o_proj.weight", "attn_output.weight", (hidden, q_rows)),
        ("post_attention_layernorm.weight", "ffn_norm.weight", (hidden,)),
        ("mlp.gate_proj.weight", "ffn_gate.weight", (ffn, hidden)),
        ("mlp.up_proj.weight", "ffn_up.weight", (ffn, hidden)),
        ("mlp.down_proj.weight", "ffn_down.weight", (hidden, ffn)),
    ]
    if config.architecture == "qwen3":
        rows += [
            ("self_attn.q_norm.weight", "attn_q_norm.weight", (config.head_dim,)),
            ("self_attn.k_norm.weight", "attn_k_norm.weight", (config.head_dim,)),
        ]
    else:
        rows += [
            ("self_attn.q_proj.bias", "attn_q.bias", (q_rows,)),
            ("self_attn.k_proj.bias", "attn_k.bias", (kv_rows,)),
            ("self_attn.v_proj.bias", "attn_v.bias", (kv_rows,)),
        ]
    for name, gguf_name, shape in rows:
        yield ExpectedTensor(f"layers.{layer}.{name}", f"blk.{layer}.{gguf_name}", shape)


def _architecture(fields: Fields) -> Literal["qwen2", "qwen3"]:
    found = fields.items("architectures")
    if len(found) != 1 or not isinstance(found[0], str) or found[0] not in ARCHITECTURES:
        raise UnsupportedError(
            f"{fields.where}: 'architectures' is {shorten(found)}; supported are {', '.join(ARCHITECTURES)}",
            hint="Dense Qwen3, Qwen2 and Qwen2.5 language models can be converted.",
        )
    return ARCHITECTURES[found[0]]


def _n_labels(fields: Fields) -> int:
    """Return the classes of a sequence classifier; transformers writes them as a table, and leaves two out."""
    if not fields.items("architectures")[0].endswith("ForSequenceClassification"):
        return 0
    if "num_labels" in fields:
        return fields.integer("num_labels", low=1, high=_MAX_LABELS)
    names = fields.table("id2label").values
    if len(names) > _MAX_LABELS:
        raise UnsupportedError(f"{fields.where}: {len(names)} labels; a reranker has a few")
    return len(names) or 2


def _refuse_unsupported(fields: Fields) -> None:
    """Refuse what the GGUF file could not carry, instead of dropping it silently."""
    if "quantization_config" in fields:
        raise UnsupportedError(
            f"{fields.where} has a 'quantization_config': the weights are quantized already",
            hint="Take the checkpoint at original precision and quantize the GGUF file.",
        )
    if fields.text("hidden_act", "silu") != "silu":
        raise UnsupportedError(
            f"{fields.where}: 'hidden_act' is {fields.text('hidden_act')!r}, supported is 'silu'"
        )
    if fields.boolean("use_sliding_window", default=False) or "sliding_attention" in fields.items(
        "layer_types"
    ):
        raise UnsupportedError(f"{fields.where}: sliding-window attention is not supported")
    if fields.boolean("attention_bias", default=False):
        raise UnsupportedError(f"{fields.where}: 'attention_bias' is true, which no published Qwen3 is")
    if not fields.boolean("is_causal", default=True):
        raise UnsupportedError(f"{fields.where}: 'is_causal' is false: not a model that generates text")
