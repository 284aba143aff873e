"""Which type llama.cpp's quantizer gives each matrix of a file: its mixtures, and what replaces a type that does not fit.

As it is without an importance matrix for types that need none, and with one for those that do.
Source of all of it: src/llama-quant.cpp, llama_tensor_get_type_impl and tensor_type_fallback, for dense models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from qwen_edge.errors import UnsupportedError
from qwen_edge.quant_types import TENSOR_TYPES, FileType

Role = Literal[
    "embedding", "head", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"
]

# Query heads for each of keys and values from which V counts as small, and gets more bits.
_MANY_QUERY_HEADS = 4


def _everywhere(layer: int, n_layers: int) -> bool:
    return True


def _first_two(layer: int, n_layers: int) -> bool:
    return layer < 2


def _first_four(layer: int, n_layers: int) -> bool:
    return layer < 4


def _first_sixteenth(layer: int, n_layers: int) -> bool:
    return layer < n_layers // 16


def _first_eighth(layer: int, n_layers: int) -> bool:
    return layer < n_layers // 8


def _middle(layer: int, n_layers: int) -> bool:
    return n_layers // 8 <= layer < 7 * n_layers // 8


def _ends_and_thirds(layer: int, n_layers: int) -> bool:
    """Both ends, and every third layer between (use_more_bits)."""
    return not _middle(layer, n_layers) or (layer - n_layers // 8) % 3 == 2


@dataclass(frozen=True, slots=True)
class _Rule:
    """A type for some matrices of a role.

    Attributes:
        type_name: A key of TENSOR_TYPES.
        layers: In which layers.
        needs_many_heads: Only where V serves many query heads.
    """

    type_name: str
    layers: Callable[[int, int], bool] = _everywhere
    needs_many_heads: bool = False


_Mixture = dict[Role, tuple[_Rule, ...]]

_MANY_HEADS_Q4 = _Rule("Q4_K", needs_many_heads=True)
_MANY_HEADS_Q5 = _Rule("Q5_K", needs_many_heads=True)

_MORE_BITS: _Mixture = {
    "attn_v": (_Rule("Q6_K", _ends_and_thirds),),
    "ffn_down": (_Rule("Q6_K", _ends_and_thirds),),
}
_IQ4: _Mixture = {"attn_v": (_MANY_HEADS_Q5,), "ffn_down": (_Rule("Q5_K", _first_eighth),)}
_IQ2_SMALL: _Mixture = {
    "embedding": (_Rule("Q2_K"),),
    "head": (_Rule("Q5_K"),),
    "attn_v": (_MANY_HEADS_Q4, _Rule("Q2_K")),
    "ffn_down": (_Rule("Q2_K", _first_eighth),),
}
_IQ2_LARGE: _Mixture = {
    "embedding": (_Rule("IQ3_S"),),
    "head": (_Rule("Q5_K"),),
    "attn_v": (_MANY_HEADS_Q4, _Rule("IQ3_S")),
    "attn_output": (_Rule("IQ3_S"),),
    "ffn_down": (_Rule("IQ3_S", _first_eighth),),
}
_IQ1: _Mixture = {**_IQ2_SMALL, "attn_output": (_Rule("IQ2_XXS"),)}
_BETTER_EMBEDDING: _Mixture = {"embedding": (_Rule("Q4_K"),)}

# By file type, what differs from its base; the first rule that fits counts. Heads that no rule names: see _head_type.
_MIXTURES: dict[str, _Mixture] = {
    "Q5_K_M": _MORE_BITS,
    "Q4_K_M": _MORE_BITS,
    "Q4_K_S": {"attn_v": (_Rule("Q5_K", _first_four),), "ffn_down": (_Rule("Q5_K", _first_eighth),)},
    "Q3_K_L": {role: (_Rule("Q5_K"),) for role in ("attn_v", "attn_output", "ffn_down")},
    "Q3_K_M": {
        "attn_v": (_Rule("Q5_K", _first_two), _Rule("Q4_K")),
        "attn_output": (_Rule("Q4_K"),),
        "ffn_down": (_Rule("Q5_K", _first_sixteenth), _Rule("Q4_K")),
    },
    "Q2_K": {
        "attn_v": (_MANY_HEADS_Q4, _Rule("Q3_K")),
        "attn_output": (_Rule("Q3_K"),),
        "ffn_down": (_Rule("Q3_K"),),
    },
    "Q2_K_S": {"attn_v": (_MANY_HEADS_Q4,), "ffn_down": (_Rule("Q4_K", _first_eighth),)},
    "IQ4_NL": _IQ4,
    "IQ4_XS": _IQ4,
    "IQ3_M": {
        "attn_v": (_Rule("Q4_K"),),
        "attn_output": (_Rule("Q4_K"),),
        "ffn_down": (_Rule("Q4_K", _first_eighth),),
    },
    "IQ3_S": {"attn_v": (_MANY_HEADS_Q4,)},
    "IQ3_XS": {
        "attn_q": (_Rule("IQ3_XXS"),),
        "attn_k": (_Rule("IQ3_XXS"),),
        "attn_v": (_MANY_HEADS_Q4,),
        "ffn_gate": (_Rule("IQ3_XXS", _middle),),
        "ffn_up": (_Rule("IQ3_XXS", _middle),),
    },
    "IQ3_XXS": {
        "embedding": (_Rule("IQ3_S"),),
        "head": (_Rule("Q5_K"),),
        "attn_q": (_Rule("IQ2_S"),),
        "attn_k": (_Rule("IQ2_S"),),
        "attn_v": (_MANY_HEADS_Q4,),
        "attn_output": (_Rule("IQ3_S"),),
    },
    "IQ2_M": _IQ2_LARGE,
    "IQ2_S": _IQ2_LARGE,
    "IQ2_XS": _IQ2_SMALL,
    "IQ2_XXS": _IQ2_SMALL,
    "IQ1_M": _IQ1,
    "IQ1_S": _IQ1,
    "TQ2_0": _BETTER_EMBEDDING,
    "TQ1_0": _BETTER_EMBEDDING,
    "Q2_0": _BETTER_EMBEDDING,
}

# Where rows do not divide into the blocks of a type.
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_FALLBACKS |= dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0")
_FALLBACKS |= dict.fromkeys(
    ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
)
# A block of these is replaced by F16 at once.
_SMALLEST_BLOCK = 32


def matrix_type(
    chosen: FileType, role: Role, row_weights: int, *, layer: int, n_layers: int, query_heads: int
) -> str:
    """Return the tensor type that a matrix gets.

    Args:
        chosen: The file type.
        role: What the matrix does; a tied embedding is the head.
        row_weights: Weights in a row.
        layer: Which layer it is in, 0 for embedding and head.
        n_layers: Of the model.
        query_heads: For each head of keys and values.

    Raises:
        UnsupportedError: The quantizer refuses: it knows no type in place of this one.
    """
    wanted = chosen.base
    if role == "head":
        wanted = _head_type(chosen, row_weights)
    elif TENSOR_TYPES[chosen.base].block_weights > 1:
        wanted = _ruled_type(chosen, role, layer, n_layers, query_heads)
    return _fitting_type(wanted, row_weights)


def _ruled_type(chosen: FileType, role: Role, layer: int, n_layers: int, query_heads: int) -> str:
    for rule in _MIXTURES.get(chosen.name, {}).get(role, ()):
        if rule.needs_many_heads and query_heads < _MANY_QUERY_HEADS:
            continue
        if rule.layers(layer, n_layers):
            return rule.type_name
    return chosen.base


def _head_type(chosen: FileType, row_weights: int) -> str:
    if chosen.kind == "float":
        return chosen.base
    if chosen.base == "Q8_0" or row_weights % TENSOR_TYPES[chosen.base].block_weights:
        return "Q8_0"
    rules = _MIXTURES.get(chosen.name, {}).get("head", ())
    return rules[0].type_name if rules else "Q6_K"


def _fitting_type(wanted: str, row_weights: int) -> str:
    block_weights = TENSOR_TYPES[wanted].block_weights
    if row_weights % block_weights == 0:
        return wanted
    fallback = _FALLBACKS.get(wanted)
    if fallback is None and block_weights > _SMALLEST_BLOCK:
        raise UnsupportedError(
            f"{wanted} wants rows that divide by {block_weights}, this model has rows of {row_weights}",
            hint="llama.cpp knows no type in its place. Take another one.",
        )
    if fallback is not None and row_weights % TENSOR_TYPES[fallback].block_weights == 0:
        return fallback
    return "F16"
