"""What the weights of an ONNX model are stored as, and in which operators its graph is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from qwen_edge.convert.onnx_blocks import ROUNDINGS, BlockFormat, Rounding
from qwen_edge.errors import ConfigError
from qwen_edge.quant_types import ONNX_WEIGHT_TYPES, OnnxWeightType

AccuracyLevel = Literal[0, 4]

_BITS: dict[str, Literal[4, 8]] = {"int8": 8, "int4": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxPrecision:
    """Types of the weights, and how exactly they are multiplied.

    Attributes:
        weights: Of the layers' matrices. "f16" is a form of the file: CPU kernels compute in float32, and the weights
            take that room in memory.
        head: Of the head; None for that of the layers.
        embedding: Of an embedding that is not tied; None for the head's. A tied one is the head, stored once.
        block_size: Weights that share a scale in int8 and int4: 32, 64 or 128.
        symmetric: Blocks without zero points; None takes them for int8 only, where zero points bring nothing. In int4 they
            take 0.13 bits a weight and a third of the divergence at a block size of 32.
        rounding: How levels are chosen, see quantize_rows().
        accuracy_level: 4 rounds the inputs of a quantized matrix to 8 bits and is the fast one, 0 keeps them float32.
            8-bit matrices always take 4: ONNX Runtime multiplies them ten to fifty times slower otherwise.
        exact: Matrices that take level 0 all the same, by the end of their path: "lm_head", "down_proj",
            "layers.3.mlp.down_proj".
    """

    weights: OnnxWeightType = "f32"
    head: OnnxWeightType | None = None
    embedding: OnnxWeightType | None = None
    block_size: int = 32
    symmetric: bool | None = None
    rounding: Rounding = "nearest"
    accuracy_level: AccuracyLevel = 4
    exact: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("weights", "head", "embedding"):
            value = getattr(self, name)
            if value is not None and value not in ONNX_WEIGHT_TYPES:
                raise ConfigError(f"{name} must be one of {', '.join(ONNX_WEIGHT_TYPES)} (not {value!r})")
        if self.rounding not in ROUNDINGS:
            raise ConfigError(f"rounding must be one of {', '.join(ROUNDINGS)} (not {self.rounding!r})")
        if self.accuracy_level not in (0, 4):
            raise ConfigError(f"accuracy_level must be 0 or 4 (not {self.accuracy_level!r})")
        BlockFormat(bits=4, block_size=self.block_size)

    def type_of(self, role: Literal["layers", "head", "embedding"]) -> OnnxWeightType:
        """Return the type of the matrices in one role."""
        if role == "layers":
            return self.weights
        head = self.head or self.weights
        return head if role == "head" else self.embedding or head

    def blocks_of(self, weight_type: OnnxWeightType) -> BlockFormat | None:
        """Return the block format of a type, None for F32 and F16."""
        bits = _BITS.get(weight_type)
        if bits is None:
            return None
        symmetric = bits == 8 if self.symmetric is None else self.symmetric
        return BlockFormat(bits=bits, block_size=self.block_size, symmetric=symmetric)

    def level_of(self, path: str, bits: int) -> AccuracyLevel:
        """Return the accuracy level of a quantized matrix.

        Args:
            path: Of its node, such as "/model/layers.0/mlp/down_proj".
            bits: Of its levels.
        """
        dotted = path.replace("/", ".")
        is_exact = any(dotted.endswith("." + end) for end in self.exact)
        return 0 if bits == 4 and is_exact else 4 if bits == 8 else self.accuracy_level


FIXED_SIZES = ("batch", "tokens", "past")


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphForm:
    """The operators of a graph.

    Attributes:
        plain: Operators of the ONNX standard only, for other runtimes; else ONNX Runtime's fused ones, which are faster
            there and keep the cache in place.
        fixed: In a plain graph, the sizes of its inputs: {"batch": 1, "tokens": 64, "past": 1024}. None leaves them open.
    """

    plain: bool = False
    fixed: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if self.fixed is None:
            return
        if not self.plain:
            raise ConfigError(
                "fixed sizes go with a plain graph: the fused one grows its cache in place",
                hint="Ask for plain operators too: GraphForm(plain=True, ...), --opset-only.",
            )
        if set(self.fixed) != set(FIXED_SIZES):
            raise ConfigError(
                f"fixed sizes are {', '.join(FIXED_SIZES)} (not {', '.join(map(str, self.fixed)) or 'none'})"
            )
        for name, value in self.fixed.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
                raise ConfigError(f"the fixed size {name} must be a whole number above 0 (not {value!r})")

    def precision_of(self, precision: OnnxPrecision) -> OnnxPrecision:
        """Return the types that a graph of this form can hold: a plain one looks up no rows of 4 bits."""
        if self.plain and precision.type_of("embedding") == "int4":
            return replace(precision, embedding="int8")
        return precision
