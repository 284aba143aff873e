"""Peak memory of a conversion, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import synthetic

MEASURE = """
import json, sys
from qwen_edge import device
from qwen_edge.convert import convert_checkpoint
report = convert_checkpoint(sys.argv[1], sys.argv[2], dtype=sys.argv[3])
print(json.dumps({"peak_bytes": device.peak_memory_bytes(), "size_bytes": report.size_bytes}))
"""

ALLOWANCE_BYTES = 200 * 10**6
# 104 MB in BF16; the largest tensor, the embedding, has 8 MB.
SHAPE = synthetic.Shape(
    layers=12, hidden=512, heads=8, kv_heads=4, head_dim=128, ffn=2048, vocab=8192, context=4096
)
LARGEST_TENSOR_BYTES = SHAPE.vocab * SHAPE.hidden * 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "Synthetic"
    return synthetic.write_checkpoint(folder, SHAPE, n_shards=2, has_head=True)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_peak_memory_is_bound_by_the_largest_tensor(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    source_bytes = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert source_bytes > 100e6
    output = subprocess.check_output(
        [sys.executable, "-c", MEASURE, str(checkpoint), str(tmp_path / "m.gguf"), dtype], text=True
    )
    measured = json.loads(output)
    assert measured["peak_bytes"] < 3 * LARGEST_TENSOR_BYTES + ALLOWANCE_BYTES
    # The bound leaves room for the whole of so small a checkpoint; streaming does not take even that.
    assert measured["peak_bytes"] < source_bytes
