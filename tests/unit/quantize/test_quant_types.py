from __future__ import annotations

import gguf
import pytest

from qwen_edge.errors import ConfigError
from qwen_edge.quant_types import FILE_TYPE_ALIASES, FILE_TYPES, TENSOR_TYPES, file_type

# Newer than the gguf package; llama.cpp itself is asked in integration/runtime/test_trial_types.py.
NEWER = {"Q2_0"}


@pytest.mark.parametrize("name", sorted(set(TENSOR_TYPES) - NEWER))
def test_tensor_type_is_the_one_of_the_gguf_package(name: str) -> None:
    row = TENSOR_TYPES[name]
    other = gguf.GGMLQuantizationType[name]
    assert (row.ggml_id, (row.block_weights, row.block_bytes)) == (other.value, gguf.GGML_QUANT_SIZES[other])


@pytest.mark.parametrize("name", sorted(set(FILE_TYPES) - NEWER))
def test_file_type_is_the_one_of_the_gguf_package(name: str) -> None:
    prefix = "ALL" if name == "F32" else "MOSTLY"
    assert FILE_TYPES[name].llama_id == gguf.LlamaFileType[f"{prefix}_{name}"].value
    assert FILE_TYPES[name].base in TENSOR_TYPES


def test_tables_are_keyed_by_name() -> None:
    assert all(name == row.name for name, row in [*TENSOR_TYPES.items(), *FILE_TYPES.items()])


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("Q4_0", "Q4_0"),
        ("q4-k-m", "Q4_K_M"),
        *FILE_TYPE_ALIASES.items(),
        ("q3_k", "Q3_K_M"),
        ("bf16", "BF16"),
    ],
)
def test_names_and_aliases(asked: str, found: str) -> None:
    assert file_type(asked).name == found


def test_unknown_type_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean .*Q4_K_M"):
        file_type("Q4_KM")


def test_families_list_larger_before_smaller() -> None:
    for kind in ("legacy", "k", "iq", "trained"):
        bits = [TENSOR_TYPES[row.base].bits_per_weight for row in FILE_TYPES.values() if row.kind == kind]
        assert bits == sorted(bits, reverse=True)
