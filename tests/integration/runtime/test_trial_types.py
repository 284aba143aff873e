"""Every type llama.cpp makes: its quantizer's plan, our blocks read by its own code, and its kernels on them."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest

from qwen_edge.native import library
from qwen_edge.native.selftest import SELFTEST_SHAPE, run_selftest
from qwen_edge.quant_types import FILE_TYPES, TENSOR_TYPES
from qwen_edge.trial_blocks import BLOCK_FORMS, random_blocks
from qwen_edge.trial_model import write_trial_model
from tests.golden.make_tensor_types import GOLDEN, SHAPES, quantizer_types, write_outline


class TypeTraits(ctypes.Structure):
    """Source: struct ggml_type_traits in ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    library.api()
    folder = library.library_folder()
    assert folder is not None
    ggml = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
    ggml.ggml_validate_row_data.restype = ctypes.c_bool
    ggml.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return ggml


@pytest.mark.parametrize("type_name", BLOCK_FORMS)
def test_llama_cpp_reads_the_weights_that_were_asked_for(ggml: ctypes.CDLL, type_name: str) -> None:
    row = TENSOR_TYPES[type_name]
    traits = ggml.ggml_get_type_traits(row.ggml_id).contents
    assert (traits.blck_size, traits.type_size) == (row.block_weights, row.block_bytes)
    blocks = random_blocks(BLOCK_FORMS[type_name], 4000, 0.02, np.random.default_rng(1))
    assert ggml.ggml_validate_row_data(row.ggml_id, blocks.ctypes.data, blocks.nbytes)
    weights = np.empty((4000, row.block_weights), np.float32)
    traits.to_float(blocks.ctypes.data, weights.ctypes.data, weights.size)
    assert np.isfinite(weights).all()
    assert np.sqrt(np.mean(weights**2)) == pytest.approx(0.02, rel=0.02)
    assert abs(np.mean(weights)) < 0.001
    sizes = np.sqrt(np.mean(weights**2, axis=1))
    assert sizes.std() > 0.05 * sizes.mean(), "blocks differ in scale, so that a mix-up is seen"


def test_fast_and_plain_kernels_agree_for_every_type(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.gguf" for name in FILE_TYPES}
    for name, file in files.items():
        write_trial_model(file, SELFTEST_SHAPE, name)
    test = run_selftest(files, tmp_path)
    assert {outcome.type_name for outcome in test.outcomes} == set(FILE_TYPES)
    assert test.failures("safe") == ()
    assert test.failures("fast") == ()
    for name in FILE_TYPES:
        logits = np.load(tmp_path / f"safe-{name}.npy")
        assert 0.3 < np.sqrt(np.mean(logits**2)) < 3, f"{name}: activations stay in range"


@pytest.mark.parametrize("name", SHAPES)
def test_the_quantizer_still_plans_what_the_golden_table_has(name: str, tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())[name]
    source = write_outline(tmp_path, SHAPES[name])
    assert {row.name: quantizer_types(source, row) for row in FILE_TYPES.values()} == expected
