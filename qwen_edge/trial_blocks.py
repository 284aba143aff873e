"""Random blocks of every quantized type, as they lie in a file: valid, and with weights as large as asked.

Levels, signs and places in codebooks are random bits, which every type takes: its codebooks have as many entries as its
indices can name. Scales make the weights as large as a trained model's, so that activations stay in range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Each scale is drawn between 1 - SPREAD and 1 + SPREAD of the mean, with either sign: a kernel that takes the scale of
# another block is then seen.
_SPREAD = 0.25
_SCALE_RMS = (1 + _SPREAD**2 / 3) ** 0.5

Generator = np.random.Generator
Blocks = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockForm:
    """How random blocks of a type are made.

    Attributes:
        layout: The fields of a block, as its struct in ggml-common.h has them; `d` is the scale, `m` the minimum, what
            is neither is random.
        rms: Root mean square of the weights of a block with scale 1.
        minimum: What belongs into `m` for a mean of 0, in scales; None without one.
        finish: Mends blocks whose random bits or scales need more than that; given them with the scales, float16.
    """

    layout: list[tuple[Any, ...]]
    rms: float
    minimum: float | None = None
    finish: Callable[[Blocks, NDArray[np.float16], Generator], None] | None = None


def _without_lowest(blocks: Blocks, scales: NDArray[np.float16], random: Generator) -> None:
    # Quantizers never write -128, and kernels rely on it: the sign of -128 cannot be changed in 8 bits.
    np.maximum(blocks["q"], -127, out=blocks["q"])


def _spread_scale(blocks: Blocks, scales: NDArray[np.float16], random: Generator) -> None:
    """Put the four nibbles of the scale where IQ1_M has them: above 12 bits of each group's own scales."""
    bits = scales.view("<u2")
    for i in range(4):
        nibbles = (bits >> (4 * i)) & 0xF
        blocks["s"][:, i] = (blocks["s"][:, i] & 0x0FFF) | (nibbles << 12)


def _five_in_a_byte(blocks: Blocks, scales: NDArray[np.float16], random: Generator) -> None:
    """Draw bytes of five values of three, and of four: fractions of 243, rounded up. Source: quantize_row_tq1_0_ref."""
    for name, step in (("q", 1), ("h", 3)):
        shape = blocks[name].shape
        levels = random.integers(0, 243 // step, shape, np.uint8).astype(np.uint16) * step
        blocks[name] = (levels * 256 + 242) // 243


def _four_in_a_byte(blocks: Blocks, scales: NDArray[np.float16], random: Generator) -> None:
    """Draw bytes of four values of three, 2 bits each: the fourth bit pattern does not occur."""
    digits = np.stack(np.unravel_index(np.arange(81), (3, 3, 3, 3)))
    valid = np.sum(digits << np.array([[0], [2], [4], [6]]), axis=0).astype(np.uint8)
    blocks["q"] = valid[random.integers(0, 81, blocks["q"].shape, np.uint8)]


def _odd_squares(n: int) -> float:
    """Return the mean square of the first n odd numbers."""
    return (4 * n * n - 1) / 3


def _uniform(n_bits: int) -> float:
    """Return the mean square of levels from -2**(n_bits - 1) up: a variance of (4**n - 1) / 12 and a mean of -1/2."""
    return ((1 << 2 * n_bits) - 1) / 12 + 1 / 4


def _with_minimum(scale_mean: float, scale_square: float, level_mean: float, level_square: float) -> float:
    """Return the rms of scale * s * q - minimum * t, where s and t are drawn alike and minimum = mean(q) * scale."""
    square = scale_square * (level_square + level_mean**2) - 2 * (scale_mean * level_mean) ** 2
    return float(square**0.5)


# Mean squares over all entries of the codebooks, and of the values of IQ4. Those of IQ1 are shifted by 1/8 either way.
# Source: iq2xxs_grid, iq2xs_grid, iq2s_grid, iq3xxs_grid, iq3s_grid, iq1s_grid, kvalues_iq4nl in ggml-common.h.
_GRID_IQ2_XXS = 1094513 / 2048
_GRID_IQ2_XS = 2402206 / 4096
_GRID_IQ2_S = 4889327 / 8192
_GRID_IQ3_XXS = 974480 / 1024
_GRID_IQ3_S = 118112 / 2048
_GRID_IQ1 = 9735 / 16384 + 1 / 64
_VALUES_IQ4 = 4548.0

_D = ("d", "<f2")
_M = ("m", "<f2")

# Scales within a block are 4 random bits in Q2_K (mean 7.5, mean square 77.5), 6 in Q4_K and Q5_K (31.5 and 1333.5), 6
# with an offset of 32 in Q3_K and IQ4_XS, 8 with a sign in Q6_K, and odd numbers, or halves and quarters of them, in
# IQ1 to IQ3.
# Source: block structs of ggml/src/ggml-common.h, dequantize_row_* of ggml/src/ggml-quants.c.
BLOCK_FORMS = {
    "Q1_0": BlockForm(layout=[_D, ("q", "u1", 16)], rms=1.0),
    "Q2_0": BlockForm(layout=[_D, ("q", "u1", 16)], rms=1.5**0.5),
    "Q4_0": BlockForm(layout=[_D, ("q", "u1", 16)], rms=_uniform(4) ** 0.5),
    "Q4_1": BlockForm(layout=[_D, _M, ("q", "u1", 16)], rms=(255 / 12) ** 0.5, minimum=-7.5),
    "Q5_0": BlockForm(layout=[_D, ("q", "u1", 20)], rms=_uniform(5) ** 0.5),
    "Q5_1": BlockForm(layout=[_D, _M, ("q", "u1", 20)], rms=(1023 / 12) ** 0.5, minimum=-15.5),
    "Q8_0": BlockForm(layout=[_D, ("q", "i1", 32)], rms=_uniform(8) ** 0.5, finish=_without_lowest),
    "Q2_K": BlockForm(layout=[("q", "u1", 80), _D, _M], rms=_with_minimum(7.5, 77.5, 1.5, 3.5), minimum=1.5),
    "Q3_K": BlockForm(layout=[("q", "u1", 108), _D], rms=(_uniform(3) * _uniform(6)) ** 0.5),
    "Q4_K": BlockForm(
        layout=[_D, _M, ("q", "u1", 140)], rms=_with_minimum(31.5, 1333.5, 7.5, 77.5), minimum=7.5
    ),
    "Q5_K": BlockForm(
        layout=[_D, _M, ("q", "u1", 172)], rms=_with_minimum(31.5, 1333.5, 15.5, 325.5), minimum=15.5
    ),
    "Q6_K": BlockForm(layout=[("q", "u1", 208), _D], rms=(_uniform(6) * _uniform(8)) ** 0.5),
    "IQ1_S": BlockForm(layout=[_D, ("q", "u1", 48)], rms=(_odd_squares(8) * _GRID_IQ1) ** 0.5),
    "IQ1_M": BlockForm(
        layout=[("q", "u1", 48), ("s", "<u2", 4)],
        rms=(_odd_squares(8) * _GRID_IQ1) ** 0.5,
        finish=_spread_scale,
    ),
    "IQ2_XXS": BlockForm(layout=[_D, ("q", "u1", 64)], rms=(_odd_squares(16) * _GRID_IQ2_XXS) ** 0.5 / 8),
    "IQ2_XS": BlockForm(layout=[_D, ("q", "u1", 72)], rms=(_odd_squares(16) * _GRID_IQ2_XS) ** 0.5 / 8),
    "IQ2_S": BlockForm(layout=[_D, ("q", "u1", 80)], rms=(_odd_squares(16) * _GRID_IQ2_S) ** 0.5 / 8),
    "IQ3_XXS": BlockForm(layout=[_D, ("q", "u1", 96)], rms=(_odd_squares(16) * _GRID_IQ3_XXS) ** 0.5 / 4),
    "IQ3_S": BlockForm(layout=[_D, ("q", "u1", 108)], rms=(_odd_squares(16) * _GRID_IQ3_S) ** 0.5),
    "IQ4_NL": BlockForm(layout=[_D, ("q", "u1", 16)], rms=_VALUES_IQ4**0.5),
    "IQ4_XS": BlockForm(layout=[_D, ("q", "u1", 134)], rms=(_uniform(6) * _VALUES_IQ4) ** 0.5),
    "TQ1_0": BlockForm(
        layout=[("q", "u1", 48), ("h", "u1", 4), _D], rms=(2 / 3) ** 0.5, finish=_five_in_a_byte
    ),
    "TQ2_0": BlockForm(layout=[("q", "u1", 64), _D], rms=(2 / 3) ** 0.5, finish=_four_in_a_byte),
}


def random_blocks(form: BlockForm, count: int, rms: float, random: Generator) -> Blocks:
    """Return blocks of a type as they lie in a file.

    Args:
        form: See BLOCK_FORMS.
        count: Of the blocks.
        rms: Root mean square of the weights.
        random: What they are drawn from.

    Returns:
        A structured array [count].
    """
    layout = np.dtype(form.layout)
    n_bytes = count * layout.itemsize
    blocks = random.bit_generator.random_raw(-(-n_bytes // 8)).view(np.uint8)[:n_bytes].view(layout)
    either = random.random(count, np.float32) * 2 - 1
    spread = np.copysign(1 - _SPREAD + 2 * _SPREAD * np.abs(either), either)
    scales = (spread * np.float32(rms / (form.rms * _SCALE_RMS))).astype("<f2")
    if _D in form.layout:
        blocks["d"] = scales
    if form.minimum is not None:
        blocks["m"] = scales * np.float16(form.minimum)
    if form.finish is not None:
        form.finish(blocks, scales, random)
    return blocks


def random_floats(type_name: str, count: int, rms: float, random: Generator) -> NDArray[Any]:
    """Return uniform weights in F32, F16 or BF16.

    Args:
        type_name: One of these.
        count: Of the weights.
        rms: Their root mean square.
        random: What they are drawn from.

    Returns:
        float32, float16, or the upper halves of float32 as uint16: [count].
    """
    values = random.random(count, np.float32)
    values -= np.float32(0.5)
    values *= np.float32(12**0.5 * rms)
    if type_name == "BF16":
        return (values.view("<u4") >> 16).astype("<u2")
    return values.astype("<f2" if type_name == "F16" else "<f4")
