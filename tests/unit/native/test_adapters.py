"""What is checked of an adapter file before llama.cpp sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.config import AdapterConfig, LoadConfig
from qwen_edge.errors import ConfigError, GGUFError, ModelNotFoundError, QwenEdgeError, UnsupportedError
from qwen_edge.native.adapters import check_adapter, check_is_no_adapter

PAIR = {
    "blk.0.attn_q.weight.lora_a": np.ones((4, 32), np.float32),
    "blk.0.attn_q.weight.lora_b": np.ones((64, 4), np.float32),
}
Tensors = dict[str, np.ndarray[Any, Any]]


def _write(path: Path, tensors: Tensors, **values: Any) -> Path:
    """Write an adapter; `values` replace metadata, None leaves a key out."""
    writer = gguf.GGUFWriter(path, "qwen3")
    keys: dict[str, Any] = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    for key, value in (keys | values).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_whole_adapter_passes(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.gguf", PAIR)
    check_adapter(path)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="is an adapter, not a model"):
        check_is_no_adapter(_write(tmp_path / "a.gguf", PAIR))
    check_is_no_adapter(_write(tmp_path / "m.gguf", PAIR, **{"general.type": "model"}))
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    check_is_no_adapter(tmp_path / "damaged.gguf")


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"general.type": "model"}, GGUFError, "no adapter: it holds a model"),
        ({"general.type": None}, GGUFError, "no adapter: it holds a model"),
        ({"general.type": 3}, GGUFError, "no adapter"),
        ({"adapter.type": "control_vector"}, UnsupportedError, "'control_vector'"),
        ({"adapter.type": None}, UnsupportedError, "None"),
        # llama.cpp asserts that these have the right type.
        ({"adapter.lora.alpha": None}, GGUFError, "alpha"),
        ({"adapter.lora.alpha": 8}, GGUFError, "alpha"),
        ({"adapter.lora.alpha": "8"}, GGUFError, "alpha"),
    ],
)
def test_metadata_is_checked(
    tmp_path: Path, values: dict[str, Any], error: type[QwenEdgeError], said: str
) -> None:
    with pytest.raises(error, match=said):
        check_adapter(_write(tmp_path / "a.gguf", PAIR, **values))


@pytest.mark.parametrize(
    ("tensors", "error", "said"),
    [
        # llama.cpp loads this one and aborts in the first call of a model with a tied head.
        (
            {
                "token_embd.weight.lora_a": np.ones((300, 4), np.float32),
                "token_embd.weight.lora_b": np.ones((32, 4), np.float32),
            },
            UnsupportedError,
            "changes the embedding",
        ),
        # And it dies in the first product with this one.
        (
            PAIR | {"blk.0.attn_q.weight.lora_b": np.ones((64, 4), np.float64)},
            UnsupportedError,
            "ggml type|F64",
        ),
        (
            PAIR | {"blk.0.attn_q.weight.lora_b": np.ones((2, 64, 4), np.float32)},
            UnsupportedError,
            r"shape \[4, 64, 2\]",
        ),
        (
            PAIR | {"blk.0.attn_k.weight.lora_a": np.ones((4, 32), np.float32)},
            GGUFError,
            "no tensor of a pair",
        ),
        (PAIR | {"blk.0.attn_norm.weight": np.ones(32, np.float32)}, GGUFError, "no tensor of a pair"),
    ],
)
def test_tensors_are_checked(tmp_path: Path, tensors: Tensors, error: type[QwenEdgeError], said: str) -> None:
    with pytest.raises(error, match=said):
        check_adapter(_write(tmp_path / "a.gguf", tensors))


def test_other_things_than_adapters_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no adapter file") as raised:
        check_adapter(tmp_path / "a.gguf")
    assert "--base" in str(raised.value)
    with pytest.raises(ModelNotFoundError, match="is a folder") as raised:
        check_adapter(tmp_path)
    assert f"qwen-edge convert {tmp_path} --base" in str(raised.value)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(GGUFError, match="safetensors") as raised:
        check_adapter(tmp_path / "adapter_model.safetensors")
    assert "--base" in str(raised.value)
    (tmp_path / "a.gguf").write_bytes(b"PK\3\4")
    with pytest.raises(GGUFError, match="no GGUF file"):
        check_adapter(tmp_path / "a.gguf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _write(tmp_path_factory.mktemp("whole") / "a.gguf", PAIR).read_bytes()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(position=st.integers(0, 511), value=st.integers(0, 255), length=st.integers(0, 2000))
def test_whatever_the_damage_the_error_is_ours(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, position: int, value: int, length: int
) -> None:
    data = bytearray(whole)
    data[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(data[:length] if length < len(data) else data)
    try:
        check_adapter(path)
    except QwenEdgeError:
        return


def test_load_config_brings_adapters_into_one_form() -> None:
    config = LoadConfig(adapters=["a.gguf", ("b.gguf", 2), AdapterConfig(path=Path("c.gguf"), scale=0.0)])  # type: ignore[arg-type]
    assert config.adapters == (
        AdapterConfig(path=Path("a.gguf")),
        AdapterConfig(path=Path("b.gguf"), scale=2.0),
        AdapterConfig(path=Path("c.gguf"), scale=0.0),
    )
    assert LoadConfig().adapters == ()
    with pytest.raises(ConfigError, match="must be a list"):
        LoadConfig(adapters="a.gguf")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="scale"):
        AdapterConfig(path=Path("a"), scale=float("inf"))
