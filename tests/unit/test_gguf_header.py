from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.errors import GGUFError, ModelNotFoundError, QwenEdgeError, UnsupportedError
from qwen_edge.gguf_header import padded, read_header


def test_header_is_what_the_gguf_package_reads(make_gguf: Callable[..., Path]) -> None:
    random = np.random.default_rng(0)
    path = make_gguf(
        tensors={"a.weight": random.normal(size=(4, 64)).astype(np.float32)},
        quantized={
            "b.weight": (random.normal(size=(2, 256)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
        },
        name="x.gguf",
        file_type=7,
        context_length=4096,
        layer_norm_rms_eps=1e-6,
    )
    header, reader = read_header(path), gguf.GGUFReader(path)
    assert [(t.name, t.shape, t.type_name, t.n_bytes) for t in header.tensors] == [
        (t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.n_bytes) for t in reader.tensors
    ]
    assert header.metadata["general.architecture"] == "qwen3"
    assert header.metadata["qwen3.context_length"] == 4096
    assert header.metadata["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert "tokenizer.ggml.tokens" not in header.metadata
    assert padded(header.header_bytes) == reader.data_offset
    assert header.size_bytes == path.stat().st_size
    assert header.n_weights == 4 * 64 + 2 * 256


def test_every_cut_is_an_error(float_gguf: Path, tmp_path: Path) -> None:
    whole = float_gguf.read_bytes()
    for length in [*range(4, 400, 7), len(whole) - 1024]:
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole[:length])
        with pytest.raises(GGUFError, match="cut off"):
            read_header(cut)


@settings(max_examples=200, deadline=None)
@given(position=st.integers(4, 380), value=st.integers(0, 255))
def test_damage_is_never_a_foreign_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("damage") / "x.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("a.weight", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data)
    with suppress(QwenEdgeError):
        read_header(path)


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(ModelNotFoundError, match="a folder"):
        read_header(tmp_path)
    (tmp_path / "zip").write_bytes(b"PK\x03\x04....")
    with pytest.raises(GGUFError, match="begins with 'PK"):
        read_header(tmp_path / "zip")
    (tmp_path / "empty").touch()
    with pytest.raises(GGUFError, match="no GGUF file"):
        read_header(tmp_path / "empty")
    (tmp_path / "old").write_bytes(b"GGUF\x01\x00\x00\x00" + bytes(64))
    with pytest.raises(UnsupportedError, match="version 1"):
        read_header(tmp_path / "old")
