"""The shape of a model that is here as a GGUF file, and what it would be as another type."""

from __future__ import annotations

from dataclasses import replace

from qwen_edge.catalog import MODELS, normalised
from qwen_edge.catalog_types import CatalogModel, Shape
from qwen_edge.gguf_header import GGUFHeader

# Files of these types lose little more than their source where they are quantized; one of 4 bits loses twice.
QUANTIZABLE_TYPES = ("F32", "F16", "BF16")
REQUANTIZABLE_TYPES = ("Q8_0",)
# Weights that a file may hold beside those of its shape: factors of the rotation, a rotation's frequencies.
_SPARE = 0.001


def header_sizes(header: GGUFHeader) -> dict[str, int] | None:
    """Return the sizes that a file states of its model, by their names in Shape; None where one is missing."""

    def size(key: str) -> int:
        value = header.metadata.get(f"{header.metadata.get('general.architecture')}.{key}")
        return value if isinstance(value, int) and value > 0 else 0

    hidden, n_heads = size("embedding_length"), size("attention.head_count")
    sizes = {
        "n_layers": size("block_count"),
        "hidden_size": hidden,
        "ffn_size": size("feed_forward_length"),
        "n_heads": n_heads,
    }
    if not all(sizes.values()):
        return None
    embedding = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    key, value = (size(f"attention.{part}_length") or hidden // n_heads for part in ("key", "value"))
    return sizes | {
        "n_kv_heads": size("attention.head_count_kv") or n_heads,
        "head_dim": key,
        "value_dim": value,
        "vocab_size": embedding.shape[-1] if embedding is not None else 0,
    }


def header_shape(header: GGUFHeader) -> Shape | None:
    """Return the shape of a model; None where its tensors are not those of a shape (experts, other layers)."""
    sizes = header_sizes(header)
    if sizes is None or sizes.pop("value_dim") != sizes["head_dim"]:
        return None
    names = {tensor.name for tensor in header.tensors}
    shape = Shape(
        **sizes,
        is_tied="output.weight" not in names,
        has_qkv_bias="blk.0.attn_q.bias" in names,
        has_qk_norm="blk.0.attn_q_norm.weight" in names,
    )
    n_weights = sum(tensor.n_weights for tensor in header.tensors)
    return shape if abs(n_weights - shape.n_weights) <= _SPARE * n_weights else None


def catalog_model_of(header: GGUFHeader, shape: Shape) -> CatalogModel | None:
    """Return the model of the catalog that a file is of, by its shape and its name; None where it is of none.

    A model that was trained further has the shape alone, and is another one. Whether the head is stored apart is the
    converter's choice.
    """
    name = normalised(str(header.metadata.get("general.name", "")))
    rows = [
        row
        for row in MODELS.values()
        if row.shape is not None
        and replace(row.shape, is_tied=shape.is_tied) == shape
        and name.startswith(normalised(row.title))
    ]
    return max(rows, key=lambda row: len(row.title), default=None)
