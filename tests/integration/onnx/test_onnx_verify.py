from __future__ import annotations

from pathlib import Path

import pytest

from qwen_edge.convert import OnnxPrecision, export_onnx, verify_file
from qwen_edge.quant_types import OnnxWeightType

TINY = Path(__file__).parents[3] / "examples" / "tiny-qwen3"


@pytest.mark.parametrize("weights", ["f32", "f16", "int8", "int4"])
def test_a_folder_is_compared_with_its_checkpoint(weights: OnnxWeightType, tmp_path: Path) -> None:
    folder = export_onnx(TINY, tmp_path / weights, precision=OnnxPrecision(weights=weights)).path
    report = verify_file(folder, TINY, n_threads=1)
    assert report.type == weights
    assert report.is_within_limits
    assert (report.max_logit_error < 1e-4) == (weights in ("f32", "f16"))
