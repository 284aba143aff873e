from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from qwen_edge.convert import convert_adapter
from qwen_edge.errors import ConfigError, ModelNotFoundError, UnsupportedError
from tests import synthetic
from tests.adapters import MadeAdapter, write_adapter

NAMES = {"self_attn.q_proj": "attn_q", "self_attn.v_proj": "attn_v", "mlp.down_proj": "ffn_down"}


def _keys(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}


def _tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def _halves(made: MadeAdapter) -> dict[str, np.ndarray[Any, Any]]:
    """Return the adapter's tensors under the names of the GGUF file."""
    halves = {}
    for name, values in made.tensors.items():
        _, _, _, _, layer, part, module, side, _ = name.split(".")
        halves[f"blk.{layer}.{NAMES[f'{part}.{module}']}.weight.{side.lower()}"] = values
    return halves


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
def test_tensors_and_keys_are_those_that_llama_cpp_reads(
    checkpoint: Path, tmp_path: Path, dtype: Any, source: str
) -> None:
    made = write_adapter(tmp_path / "my-adapter", checkpoint, dtype=source)
    report = convert_adapter(made.folder, checkpoint, tmp_path / "a.gguf", dtype=dtype)
    assert _keys(report.path) == {
        "general.architecture": "qwen3",
        "general.type": "adapter",
        "general.name": "my-adapter",
        "general.quantization_version": 2,
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    tensors, halves = _tensors(report.path), _halves(made)
    assert tensors.keys() == halves.keys()
    assert report.tensor_count == len(halves) == 12
    assert report.parameter_count == sum(values.size for values in halves.values())
    assert report.size_bytes == report.path.stat().st_size
    assert json.loads(json.dumps(report.to_dict()))["architecture"] == "qwen3"
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    for name, values in halves.items():
        assert tensors[name].tensor_type is kind
        assert list(reversed(tensors[name].shape)) == list(values.shape)
        expected = gguf.quants.quantize(values.astype(np.float32), kind)
        assert tensors[name].data.tobytes() == expected.tobytes()


def test_b_carries_what_one_alpha_for_the_file_cannot_say(checkpoint: Path, tmp_path: Path) -> None:
    made = write_adapter(
        tmp_path / "a",
        checkpoint,
        ranks=lambda module: 16 if module.endswith("down_proj") else 4,
        rank_pattern={"down_proj": 16},
        alpha_pattern={"layers.1.self_attn.q_proj": 24},
        use_rslora=True,
    )
    path = convert_adapter(made.folder, checkpoint, tmp_path / "a.gguf").path
    tensors, halves = _tensors(path), _halves(made)
    for name, values in halves.items():
        if name.endswith(".lora_a"):
            assert tensors[name].data.tobytes() == values.tobytes()
            continue
        rank = values.shape[1]
        alpha = 24 if name == "blk.1.attn_q.weight.lora_b" else 8
        wanted = alpha / rank**0.5
        applied_by_llama_cpp = 8 / rank
        assert np.allclose(tensors[name].data * applied_by_llama_cpp, values * wanted, rtol=1e-6)


def test_dora_is_refused_with_the_way_out(checkpoint: Path, tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "a", checkpoint, use_dora=True)
    with pytest.raises(UnsupportedError, match="DoRA") as raised:
        convert_adapter(made.folder, checkpoint, tmp_path / "a.gguf")
    assert f"qwen-edge convert {checkpoint} --adapter {made.folder}" in str(raised.value)
    assert not (tmp_path / "a.gguf").exists()


def test_a_weight_beyond_f16_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "a", checkpoint, strength=1e6)
    with pytest.raises(UnsupportedError, match=r"lora_B\.weight.*65504") as raised:
        convert_adapter(made.folder, checkpoint, tmp_path / "a.gguf", dtype="f16")
    assert "f32" in str(raised.value)
    assert not (tmp_path / "a.gguf").exists()


def test_only_the_config_of_the_model_is_read(checkpoint: Path, tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "a", checkpoint)
    (checkpoint / "model.safetensors").unlink()
    assert convert_adapter(made.folder, checkpoint, tmp_path / "a.gguf").architecture == "qwen3"
    with pytest.raises(ModelNotFoundError, match="no checkpoint"):
        convert_adapter(made.folder, tmp_path / "nowhere", tmp_path / "b.gguf")


def test_qwen2_is_named_in_the_file(tmp_path: Path) -> None:
    base = synthetic.write_checkpoint(tmp_path / "c", synthetic.as_qwen2(synthetic.TINY))
    made = write_adapter(tmp_path / "a", base)
    path = convert_adapter(made.folder, base, tmp_path / "a.gguf").path
    assert _keys(path)["general.architecture"] == "qwen2"


def test_types_and_targets_are_checked(checkpoint: Path, tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "a", checkpoint)
    with pytest.raises(ConfigError, match="f32, f16"):
        convert_adapter(made.folder, checkpoint, tmp_path / "a.gguf", dtype="bf16")  # type: ignore[arg-type]
    for target in (tmp_path, made.folder / "adapter_model.safetensors"):
        with pytest.raises(ConfigError, match="is a folder or"):
            convert_adapter(made.folder, checkpoint, target)
