"""Small GGUF files without a model in them, and an engine without a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from qwen_edge.engines.base import Context, Engine, ModelInfo

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


class TableEngine(Engine):
    """Its next-token logits depend on the last token alone: a table, so that a test can know the answer."""

    def __init__(self, seed: int, n_vocab: int = 128) -> None:
        self.table = np.random.default_rng(seed).normal(0, 2, (n_vocab, n_vocab)).astype(np.float32)
        self.scored: list[list[int]] = []
        self.is_closed = False
        self.info = ModelInfo(
            path=None,
            engine="table",
            architecture="",
            name=f"table {seed}",
            chat_template="",
            special_texts={},
            n_vocab=n_vocab,
            n_params=self.table.size,
            n_ctx_train=1024,
            weights_bytes=self.table.nbytes,
            settings={},
        )

    def tokenize(self, text: str, *, parse_special: bool = True) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def is_end(self, token: int) -> bool:
        return False

    def new_context(self) -> Context:
        raise NotImplementedError("evaluation scores whole windows")

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.scored.append(list(tokens))
        rows: NDArray[np.float32] = self.table[list(tokens)]
        return rows

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def table_engine() -> type[TableEngine]:
    """Return the class: table_engine(seed, n_vocab=128)."""
    return TableEngine
