"""Plain graphs in OpenVINO, a runtime that knows nothing of ONNX Runtime's operators: pip install openvino."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.convert import GraphForm, OnnxPrecision, export_onnx
from qwen_edge.convert.checkpoint import open_checkpoint
from qwen_edge.convert.reference import Reference
from tests.golden.checkpoints import CHECKPOINTS, tokens_of
from tests.onnx_stored import write_stored

pytestmark = pytest.mark.oracle

N_TOKENS, ROOM = 48, 16
# 6e-6 was measured.
TOLERANCE = 1e-4


@pytest.mark.parametrize(
    "fixed", [None, {"batch": 1, "tokens": N_TOKENS, "past": ROOM}], ids=["open", "fixed"]
)
@pytest.mark.parametrize(
    "kind", [{}, {"weights": "f16"}, {"weights": "int8"}, {"weights": "int4"}, {"weights": "int4", "symmetric": False}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ["qwen2-biased", "qwen3-yarn"])
def test_it_computes_what_the_weights_say(
    name: str, kind: dict[str, Any], fixed: dict[str, int] | None, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    checkpoint, tokens = CHECKPOINTS[name](tmp_path / "c"), tokens_of(name)
    form = GraphForm(plain=True, fixed=fixed)
    precision = form.precision_of(OnnxPrecision(**kind))
    stored = open_checkpoint(write_stored(checkpoint, tmp_path / "s", precision))
    (expected,) = Reference(stored).logits([tokens.tolist()])
    export_onnx(checkpoint, tmp_path / "o", precision=precision, form=form)
    core = openvino.Core()
    # Its defaults compute in BF16 where the CPU can, and round inputs to 8 bits.
    exact = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": 1,
    }
    model = core.compile_model(core.read_model(tmp_path / "o" / "model.onnx"), "CPU", exact)
    past = ROOM if fixed else 0
    feeds: dict[str, Any] = {
        "input_ids": tokens[np.newaxis],
        "position_ids": np.arange(N_TOKENS)[np.newaxis],
        "attention_mask": np.repeat([0, 1], [past, N_TOKENS])[np.newaxis],
    }
    for each in model.inputs:
        if each.any_name.startswith("past_key_values."):
            _, heads, _, width = each.partial_shape
            feeds[each.any_name] = np.zeros((1, heads.get_length(), past, width.get_length()), np.float32)
    # An input with a default is a constant there: logits come for the last token.
    assert "logits_positions" not in {each.any_name for each in model.inputs}
    assert np.abs(model(feeds)["logits"][0, 0] - expected[-1]).max() < TOLERANCE
