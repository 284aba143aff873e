"""Small GGUF files without a model in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

MakeGGUF = Callable[..., Path]


@pytest.fixture
def make_gguf(tmp_path: Path) -> MakeGGUF:
    """Return a function that writes a GGUF file of the given tensors and metadata."""

    def make(
        name: str = "source.gguf",
        *,
        tensors: dict[str, np.ndarray] | None = None,
        quantized: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]] | None = None,
        **metadata: Any,
    ) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, "qwen3")
        writer.add_array("tokenizer.ggml.tokens", ["a", "ä", "<|im_end|>"])
        writer.add_array("tokenizer.ggml.scores", [0.5, 1.5, 2.5])
        for key, value in metadata.items():
            getattr(writer, f"add_{key}")(value)
        for tensor_name, values in (tensors or {}).items():
            writer.add_tensor(tensor_name, values)
        for tensor_name, (values, kind) in (quantized or {}).items():
            writer.add_tensor(tensor_name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


@pytest.fixture
def float_gguf(make_gguf: MakeGGUF) -> Path:
    """A file with one matrix of 3 rows of 256 weights in F16 and one norm in F32."""
    return make_gguf(
        tensors={
            "blk.0.attn_q.weight": np.ones((3, 256), np.float16),
            "blk.0.attn_norm.weight": np.ones(256, np.float32),
        },
        file_type=1,
    )
