"""Our plan of a file against what llama.cpp's quantizer said it would make; golden/make_tensor_types.py asked it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen_edge.catalog import MODELS
from qwen_edge.errors import UnsupportedError
from qwen_edge.quant_types import FILE_TYPES, TENSOR_TYPES
from qwen_edge.tensor_plan import plan_tensors
from tests.golden.make_tensor_types import GOLDEN, REFUSED, SHAPES, planned_in_short

FOUND = json.loads(Path(GOLDEN).read_text())


@pytest.mark.parametrize("type_name", FILE_TYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_every_matrix_has_the_quantizer_s_type(name: str, type_name: str) -> None:
    expected = FOUND[name][type_name]
    if expected == REFUSED:
        with pytest.raises(UnsupportedError, match=f"{type_name} wants rows that divide by"):
            plan_tensors(SHAPES[name], type_name)
        return
    assert planned_in_short(plan_tensors(SHAPES[name], type_name)) == expected


def test_the_quantizer_was_asked_for_every_type_and_refused_few() -> None:
    assert all(set(rows) == set(FILE_TYPES) for rows in FOUND.values())
    refused = {(name, kind) for name, rows in FOUND.items() for kind in rows if rows[kind] == REFUSED}
    assert {kind for _, kind in refused} == {"Q1_0"}
    assert not {name for name, _ in refused} & set(MODELS)


@pytest.mark.parametrize("type_name", FILE_TYPES)
def test_vectors_stay_as_they_are(type_name: str) -> None:
    for tensor in plan_tensors(SHAPES["qwen2.5-0.5b"], type_name):
        assert tensor.is_vector == (tensor.n_rows == 1)
        assert tensor.is_vector <= (tensor.type_name == "F32")
        assert tensor.row_weights % TENSOR_TYPES[tensor.type_name].block_weights == 0
