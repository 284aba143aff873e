"""Which weights llama.cpp holds in another form than the file's, and how large that is.

Its kernels for AMX, AVX2 and ARM want matrices rearranged. That is done while loading: the matrix is then held in that form
alone, or, where the file is mapped, beside the pages it came from. An embedding is looked up in the file's own form.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

from qwen_edge import device
from qwen_edge.config import LoadConfig
from qwen_edge.native import library, probe
from qwen_edge.native.library_file import has_amx_kernels
from qwen_edge.quant_types import TENSOR_TYPES

Kernels = frozenset[Literal["amx", "avx2", "avx512", "arm"]]

PLAIN: Kernels = frozenset()

# Bytes that a block grows by. Source: get_row_size and qtype_has_amx_kernels in ggml/src/ggml-cpu/amx/mmq.cpp; the types
# that amx.cpp's supports_op takes. F16 is kept as it is, but in a copy all the same.
_AMX_EXTRA_BYTES = {"Q4_0": 0, "Q4_1": 0, "Q8_0": 4, "Q4_K": 4, "Q5_K": 4, "Q6_K": 0, "IQ4_XS": 2, "F16": 0}
_AMX_ROWS = 32
_AMX_COLUMNS = {"Q4_0": 32, "Q4_1": 32, "Q8_0": 32, "F16": 16}

# Rows that are interleaved; the form is as long as the file's.
# Source: ggml_repack_get_optimal_repack_type in ggml/src/ggml-cpu/repack.cpp.
_AVX2_ROWS = {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8, "MXFP4": 8}
_AVX512_ROWS = {"Q2_K": 8}
_ARM_ROWS = {"Q4_0": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8, "Q8_0": 4, "IQ4_NL": 4, "MXFP4": 4, "Q1_0": 4}


def cpu_kernels() -> Kernels:
    """Return the kernels of a build that was made for this CPU."""
    features = device.cpu_features()
    found: set[Literal["amx", "avx2", "avx512", "arm"]] = set()
    if "amx_int8" in features:
        found.add("amx")
    if "avx2" in features:
        found.add("avx2")
    if "avx512f" in features:
        found.add("avx512")
    if "asimd" in features and ("asimddp" in features or "i8mm" in features):
        found.add("arm")
    return frozenset(found)


def build_kernels() -> Kernels:
    """Return the kernels of the build that will be used, without loading it; without a build, those of this CPU."""
    folder = library.library_folder()
    return cpu_kernels() if folder is None or _has_amx(folder) else cpu_kernels() - {"amx"}


def expected_kernels(config: LoadConfig, path: Path | None = None) -> Kernels:
    """Return the kernels that loading will use, as far as that is known before it: none where it keeps to the plain ones.

    Args:
        config: safe_kernels says so, or leaves it to the probe.
        path: A GGUF file, whose own verdict counts; None of what is not here yet: what other files needed counts.
    """
    is_safe = config.safe_kernels
    if is_safe is None and path is None:
        is_safe = probe.known_fallback()
    elif is_safe is None and path is not None:
        verdict = probe.known_verdict(path)
        is_safe = verdict is not None and verdict.kernels == "safe"
    return PLAIN if is_safe else build_kernels()


@functools.cache
def _has_amx(folder: Path) -> bool:
    return has_amx_kernels(folder) is not False


def rearranged_bytes(type_name: str, row_weights: int, n_rows: int, kernels: Kernels) -> int | None:
    """Return the bytes of a matrix in the form that kernels want; None where they take it as it is.

    Args:
        type_name: A key of TENSOR_TYPES.
        row_weights: Weights in a row.
        n_rows: Rows.
        kernels: Of the build.
    """
    block = TENSOR_TYPES[type_name]
    n_blocks = n_rows * row_weights // block.block_weights
    if "amx" in kernels and type_name in _AMX_EXTRA_BYTES:
        columns = _AMX_COLUMNS.get(type_name, 256)
        if n_rows % _AMX_ROWS == 0 and row_weights % columns == 0:
            return n_blocks * (block.block_bytes + _AMX_EXTRA_BYTES[type_name])
    for kernel, rows in (("avx2", _AVX2_ROWS), ("avx512", _AVX512_ROWS), ("arm", _ARM_ROWS)):
        if kernel in kernels and type_name in rows and n_rows % rows[type_name] == 0:
            return n_blocks * block.block_bytes
    return None
