from __future__ import annotations

import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwen_edge.config import AdapterConfig
from qwen_edge.convert import convert_checkpoint
from qwen_edge.convert.adapter_merge import MergedTensor, apply_adapters
from qwen_edge.convert.checkpoint import Checkpoint, open_checkpoint
from qwen_edge.errors import CheckpointError, ConfigError, UnsupportedError
from tests import synthetic
from tests.adapters import ALL_LINEAR, Array, merged_by_formula, write_adapter

# Float32 sums of at most 64 products, against float64.
TOLERANCE = 2e-6


def _values(checkpoint: Checkpoint, name: str, piece_bytes: int = 1 << 20) -> Array:
    tensor = checkpoint.tensors[name]
    assert tensor.dtype == "F32"
    return np.frombuffer(b"".join(tensor.read_pieces(piece_bytes)), "<f4").reshape(tensor.shape)


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"]
)
@pytest.mark.parametrize("base_dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_merged_weights_are_those_of_the_formula(
    tmp_path: Path, settings: dict[str, bool], base_dtype: str, dtype: str
) -> None:
    base = synthetic.write_checkpoint(tmp_path / "c", dtype=base_dtype)
    made = write_adapter(tmp_path / "a", base, dtype=dtype, target_modules=list(ALL_LINEAR), **settings)
    merged = apply_adapters(open_checkpoint(base), [made.folder])
    expected = merged_by_formula(load_file(base / "model.safetensors"), [(made, 1.0)])
    assert len(expected) == 14
    for name, tensor in merged.tensors.items():
        assert isinstance(tensor, MergedTensor) == (name in expected)
    for name, values in expected.items():
        assert np.abs(_values(merged, name) - values).max() < TOLERANCE


def test_several_adapters_add_up_with_their_scales(checkpoint: Path, tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "a", checkpoint, seed=1)
    second = write_adapter(tmp_path / "b", checkpoint, seed=2, use_dora=True, target_modules=["q_proj"], r=8)
    adapters = [(first, 0.5), (second, -2.0), (first, 1.0)]
    merged = apply_adapters(
        open_checkpoint(checkpoint),
        [(first.folder, 0.5), AdapterConfig(path=second.folder, scale=-2.0), first.folder],
    )
    for name, values in merged_by_formula(load_file(checkpoint / "model.safetensors"), adapters).items():
        assert np.abs(_values(merged, name) - values).max() < 2 * TOLERANCE


@pytest.mark.parametrize("use_dora", [False, True])
def test_scale_zero_is_the_model(checkpoint: Path, tmp_path: Path, use_dora: bool) -> None:
    made = write_adapter(tmp_path / "a", checkpoint, use_dora=use_dora)
    convert_checkpoint(checkpoint, tmp_path / "model.gguf")
    convert_checkpoint(checkpoint, tmp_path / "merged.gguf", adapters=[(made.folder, 0.0)])
    assert (tmp_path / "model.gguf").read_bytes() == (tmp_path / "merged.gguf").read_bytes()


def test_pieces_are_of_the_asked_size(checkpoint: Path, tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "a", checkpoint, use_dora=True)
    tensor = apply_adapters(open_checkpoint(checkpoint), [made.folder]).tensors[
        "model.layers.0.mlp.down_proj.weight"
    ]
    whole = b"".join(tensor.read_pieces(tensor.n_bytes))
    assert len(whole) == tensor.n_bytes == 32 * 48 * 4
    for piece_bytes in (4, 100, 192, 1000, 10**6):
        pieces = list(tensor.read_pieces(piece_bytes))
        assert all(len(piece) == piece_bytes for piece in pieces[:-1])
        # Sums of products depend a little on how many rows are multiplied at once.
        difference = np.frombuffer(b"".join(pieces), "<f4") - np.frombuffer(whole, "<f4")
        assert np.abs(difference).max() < TOLERANCE


def test_a_merged_checkpoint_can_be_merged_again(checkpoint: Path, tmp_path: Path) -> None:
    first, second = (write_adapter(tmp_path / f"{seed}", checkpoint, seed=seed) for seed in (1, 2))
    twice = apply_adapters(apply_adapters(open_checkpoint(checkpoint), [first.folder]), [second.folder])
    at_once = apply_adapters(open_checkpoint(checkpoint), [first.folder, second.folder])
    name = "model.layers.1.self_attn.q_proj.weight"
    assert np.abs(_values(twice, name, 300) - _values(at_once, name)).max() < TOLERANCE


def test_memory_does_not_grow_with_the_matrix(tmp_path: Path) -> None:
    shape = synthetic.Shape(layers=1, hidden=512, heads=4, kv_heads=2, head_dim=64, ffn=4096, vocab=300)
    base = synthetic.write_checkpoint(tmp_path / "c", shape)
    made = write_adapter(tmp_path / "a", base, use_dora=True, target_modules=["down_proj"])
    tensor = apply_adapters(open_checkpoint(base), [made.folder]).tensors[
        "model.layers.0.mlp.down_proj.weight"
    ]
    piece_bytes = 64 << 10
    tracemalloc.start()
    try:
        assert sum(len(piece) for piece in tensor.read_pieces(piece_bytes)) == tensor.n_bytes == 8 << 20
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10 * piece_bytes + (4096 + 512) * 4 * 4 * 2


def test_the_sum_is_rounded_once(checkpoint: Path, tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "a", checkpoint)
    report = convert_checkpoint(checkpoint, tmp_path / "m.gguf", dtype="bf16", adapters=[made.folder])
    assert report.adapters == (made.folder,)
    assert report.to_dict()["adapters"] == [str(made.folder)]
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(report.path).tensors}
    merged = apply_adapters(open_checkpoint(checkpoint), [made.folder])
    values = _values(merged, "model.layers.0.self_attn.v_proj.weight", 4 << 20)
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
    assert tensors["blk.0.attn_v.weight"].data.tobytes() == expected.tobytes()


def test_a_tied_heads_copy_is_still_compared(tmp_path: Path) -> None:
    base = synthetic.write_checkpoint(tmp_path / "c", has_head=True)
    made = write_adapter(tmp_path / "a", base)
    report = convert_checkpoint(base, tmp_path / "m.gguf", adapters=[made.folder])
    assert [tensor.name for tensor in report.dropped] == ["lm_head.weight"]


def test_a_diverged_adapter_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "a", checkpoint)
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    made.tensors[name][3, 1] = np.nan
    save_file(made.tensors, made.folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj.*no finite numbers"):
        convert_checkpoint(checkpoint, tmp_path / "out" / "m.gguf", adapters=[made.folder])
    assert not list((tmp_path / "out").iterdir())


def test_a_row_without_length_is_refused(tmp_path: Path) -> None:
    base = synthetic.write_checkpoint(tmp_path / "c")
    made = write_adapter(tmp_path / "a", base, use_dora=True, target_modules=["q_proj"])
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"][5] = 0
    save_file(weights, base / "model.safetensors")
    made.tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"][5] = 0
    save_file(made.tensors, made.folder / "adapter_model.safetensors")
    merged = apply_adapters(open_checkpoint(base), [made.folder])
    with pytest.raises(CheckpointError, match="no finite numbers"):
        _values(merged, "model.layers.0.self_attn.q_proj.weight")


def test_a_checkpoint_that_contradicts_its_config_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "a", checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(weights | {name: weights[name][:10].copy()}, checkpoint / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"q_proj.*of shape \[10, 32\]; config\.json asks for \[64, 32\]"
    ):
        apply_adapters(open_checkpoint(checkpoint), [made.folder])
    del weights[name]
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"q_proj.*is missing"):
        apply_adapters(open_checkpoint(checkpoint), [made.folder])


def test_a_type_that_cannot_be_converted_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "a", checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(weights | {name: np.ones((64, 32), np.int8)}, checkpoint / "model.safetensors")
    with pytest.raises(UnsupportedError, match="stored as I8"):
        apply_adapters(open_checkpoint(checkpoint), [made.folder])


def test_the_target_is_never_the_adapters_file(checkpoint: Path, tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "a", checkpoint)
    with pytest.raises(ConfigError, match="of an adapter"):
        convert_checkpoint(checkpoint, made.folder / "adapter_model.safetensors", adapters=[made.folder])


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        ("adapter", "must be a list"),
        ([7], "path or"),
        ([("a", 1.0, 2)], "path or"),
        ([("a", "1")], "scale"),
        ([("a", True)], "scale"),
        ([("a", float("nan"))], "scale"),
        ([("a", 1e9)], "scale"),
    ],
)
def test_adapters_are_paths_with_scales(checkpoint: Path, adapters: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        convert_checkpoint(checkpoint, "never.gguf", adapters=adapters)  # type: ignore[arg-type]
