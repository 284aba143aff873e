from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from qwen_edge.convert.adapter import Adapter, is_adapter_folder, load_matrix, open_adapter
from qwen_edge.convert.adapter_merge import apply_adapters
from qwen_edge.convert.checkpoint import open_checkpoint
from qwen_edge.convert.qwen import parse_config
from qwen_edge.errors import CheckpointError, ModelNotFoundError, QwenEdgeError, UnsupportedError
from tests import synthetic
from tests.adapters import ALL_LINEAR, Array, MadeAdapter, write_adapter

A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B0 = A0.replace("lora_A", "lora_B")


@pytest.fixture
def made(checkpoint: Path, tmp_path: Path) -> MadeAdapter:
    return write_adapter(tmp_path / "adapter", checkpoint)


def _open(folder: Path, base: Path) -> Adapter:
    return open_adapter(folder, parse_config(open_checkpoint(base).config, "config.json"))


def _change(made: MadeAdapter, change: Callable[[dict[str, Array]], Any]) -> None:
    tensors = dict(made.tensors)
    change(tensors)
    save_file(tensors, made.folder / "adapter_model.safetensors")


def _configure(made: MadeAdapter, **changes: Any) -> None:
    synthetic.write_json(made.folder / "adapter_config.json", made.config | changes)


def test_pairs_are_those_of_the_file(made: MadeAdapter, checkpoint: Path) -> None:
    adapter = _open(made.folder, checkpoint)
    assert [pair.target.gguf_name for pair in adapter.pairs] == [
        f"blk.{layer}.{name}.weight" for layer in range(2) for name in ("attn_q", "attn_v", "ffn_down")
    ]
    first = adapter.pairs[0]
    assert (first.rank, first.scaling, first.magnitude) == (4, 2.0, None)
    assert (load_matrix(first.a) == made.tensors[A0]).all()
    assert (load_matrix(first.b) == made.tensors[B0]).all()


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace("base_model.model.model.", "base_model.model."),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("magnitude_vector", "magnitude_vector.default.weight"),
        lambda name: name.replace("magnitude_vector", "magnitude_vector.weight"),
    ],
    ids=["default", "bare", "unprefixed", "magnitude-default", "magnitude-weight"],
)
def test_every_spelling_of_names_is_read(
    checkpoint: Path, tmp_path: Path, rename: Callable[[str], str]
) -> None:
    made = write_adapter(tmp_path / "a", checkpoint, use_dora=True, rename=rename)
    pairs = _open(made.folder, checkpoint).pairs
    assert len(pairs) == 6
    assert all(pair.magnitude is not None for pair in pairs)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_number_format_is_read(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    made = write_adapter(tmp_path / "a", checkpoint, dtype=dtype, target_modules=list(ALL_LINEAR))
    pairs = _open(made.folder, checkpoint).pairs
    assert len(pairs) == 14
    for pair in pairs:
        assert (load_matrix(pair.a) == made.tensors[pair.a.name].astype(np.float32)).all()


def test_an_untied_head_can_be_adapted(tmp_path: Path) -> None:
    base = synthetic.write_checkpoint(tmp_path / "c", replace(synthetic.TINY, is_tied=False))
    made = write_adapter(tmp_path / "a", base, target_modules=["lm_head", "q_proj"])
    assert _open(made.folder, base).pairs[-1].target.gguf_name == "output.weight"


def test_a_tied_head_cannot(tmp_path: Path) -> None:
    base = synthetic.write_checkpoint(tmp_path / "c", has_head=True)
    made = write_adapter(tmp_path / "a", base, target_modules=["lm_head", "q_proj"])
    with pytest.raises(UnsupportedError, match=r"lm_head\.lora_A\.weight.*shares with its embedding"):
        _open(made.folder, base)


@pytest.mark.parametrize(
    ("added", "error", "said"),
    [
        ("base_model.model.lm_head.weight", UnsupportedError, "replaces a whole tensor"),
        ("base_model.model.model.norm.weight", UnsupportedError, "replaces a whole tensor"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", UnsupportedError, "adapted embedding"),
        ("base_model.model.model.embed_tokens.base_layer.weight", UnsupportedError, "adapted embedding"),
        ("base_model.model.model.embed_tokens.lora_A.weight", CheckpointError, "no linear layer"),
        (A0.replace("q_proj", "q_norm"), CheckpointError, "no linear layer"),
        (A0.replace("layers.0", "layers.9"), CheckpointError, "no linear layer of qwen3 with 2 layers"),
        (A0.replace("q_proj", "qkv_proj"), CheckpointError, "qkv_proj"),
        (A0.replace("lora_A.weight", "lora_A.bias"), CheckpointError, "no tensor of a LoRA"),
        (A0.replace("lora_A", "lora_A.other"), CheckpointError, "no tensor of a LoRA"),
        (A0.replace("lora_A", "lora_A.default"), CheckpointError, "one tensor twice"),
        (A0.replace("q_proj", "k_proj"), CheckpointError, "'target_modules'.*does not list"),
        (A0.replace("lora_A.weight", "lora_magnitude_vector"), CheckpointError, "'use_dora'"),
    ],
)
def test_a_tensor_too_much_is_named(
    made: MadeAdapter, checkpoint: Path, added: str, error: type[QwenEdgeError], said: str
) -> None:
    _change(made, lambda tensors: tensors.update({added: made.tensors[A0]}))
    with pytest.raises(error, match=said) as raised:
        _open(made.folder, checkpoint)
    assert repr(added) in raised.value.message
    assert "adapter_model.safetensors" in raised.value.message
    assert raised.value.hint


def test_a_missing_half_is_named(made: MadeAdapter, checkpoint: Path) -> None:
    _change(made, lambda tensors: tensors.pop(B0))
    with pytest.raises(CheckpointError, match=r"lacks lora_B of 'model\.layers\.0\.self_attn\.q_proj'"):
        _open(made.folder, checkpoint)


def test_a_missing_pair_is_named(made: MadeAdapter, checkpoint: Path) -> None:
    _change(made, lambda tensors: (tensors.pop(A0), tensors.pop(B0)))
    with pytest.raises(CheckpointError, match=r"lacks the pair of 'layers\.0\.self_attn\.q_proj'"):
        _open(made.folder, checkpoint)
    _configure(made, layers_to_transform=[1])
    assert len(_open(made.folder, checkpoint).pairs) == 5, "the config leaves layers out"


def test_a_missing_magnitude_is_named(made: MadeAdapter, checkpoint: Path) -> None:
    _configure(made, use_dora=True)
    with pytest.raises(CheckpointError, match="lacks lora_magnitude_vector of"):
        _open(made.folder, checkpoint)


def test_shapes_are_checked_against_rank_and_model(made: MadeAdapter, checkpoint: Path) -> None:
    _configure(made, rank_pattern={"1.mlp.down_proj": 8})
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.mlp\.down_proj\.lora_A.*\[4, 48\]; rank 8 .*\[8, 48\]"
    ):
        _open(made.folder, checkpoint)


def test_the_adapter_of_another_model_is_refused(made: MadeAdapter, tmp_path: Path) -> None:
    wider = synthetic.write_checkpoint(tmp_path / "wider", replace(synthetic.TINY, hidden=64))
    with pytest.raises(CheckpointError, match=r"has shape .* ask for") as raised:
        _open(made.folder, wider)
    assert "trained on another model" in str(raised.value)


def test_a_pickle_is_refused_with_the_safe_way(made: MadeAdapter, checkpoint: Path) -> None:
    weights = made.folder / "adapter_model.safetensors"
    weights.rename(made.folder / "adapter_model.bin")
    with pytest.raises(UnsupportedError, match=r"pickle.*run any code") as raised:
        _open(made.folder, checkpoint)
    assert "safe_serialization=True" in str(raised.value)


def test_missing_files_are_named(made: MadeAdapter, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no adapter folder"):
        _open(tmp_path / "nowhere", checkpoint)
    (made.folder / "adapter_config.json").rename(tmp_path / "adapter_config.json")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is missing"):
        _open(made.folder, checkpoint)
    assert not is_adapter_folder(made.folder)
    (tmp_path / "adapter_config.json").rename(made.folder / "adapter_config.json")
    assert is_adapter_folder(made.folder)
    (made.folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing"):
        _open(made.folder, checkpoint)


def test_a_gguf_adapter_is_for_loading(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError, match="is a GGUF file") as raised:
        _open(tmp_path / "a.gguf", checkpoint)
    assert "--adapter" in str(raised.value)


def test_an_adapter_is_no_checkpoint(made: MadeAdapter) -> None:
    with pytest.raises(UnsupportedError, match="is an adapter") as raised:
        open_checkpoint(made.folder)
    assert "--base" in str(raised.value)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_refused(made: MadeAdapter, checkpoint: Path, keep: float) -> None:
    weights = made.folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(keep * weights.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"cut off|truncated"):
        _open(made.folder, checkpoint)


WORDS = "base_model model layers 0 1 2 -1 self_attn q_proj v_proj mlp down_proj lora_A lora_B lora_magnitude_vector"
words = st.sampled_from([*WORDS.split(), "default", "weight", "bias", "lm_head", "embed_tokens", ""])
names = (
    st.lists(words, min_size=1, max_size=9).map(".".join) | st.sampled_from([A0, B0]) | st.text(max_size=20)
)
shapes = st.sampled_from([(), (0,), (4,), (64,), (4, 32), (64, 4), (4, 0), (32, 4), (4, 4, 2)])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MadeAdapter]:
    folder = tmp_path_factory.mktemp("shared")
    base = synthetic.write_checkpoint(folder / "c")
    return base, write_adapter(folder / "a", base, use_dora=True)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@given(
    added=st.dictionaries(names, shapes, max_size=3),
    removed=st.integers(0, 18),
    config=st.dictionaries(
        st.sampled_from(["target_modules", "use_dora", "r", "rank_pattern", "alpha_pattern", "bias"]),
        st.none() | st.booleans() | st.integers(-1, 9) | st.text(max_size=3) | st.just({"q_proj": 4}),
        max_size=2,
    ),
)
def test_whatever_the_names_the_error_is_ours(
    shared: tuple[Path, MadeAdapter], added: dict[str, Any], removed: int, config: dict[str, Any]
) -> None:
    base, made = shared
    tensors = dict(made.tensors)
    for name in sorted(tensors)[removed:]:
        del tensors[name]
    tensors |= {name: np.ones(shape, np.float32) for name, shape in added.items() if name != "__metadata__"}
    save_file(tensors, made.folder / "adapter_model.safetensors")
    (made.folder / "adapter_config.json").write_text(json.dumps(made.config | config))
    try:
        merged = apply_adapters(open_checkpoint(base), [made.folder])
        for tensor in merged.tensors.values():
            assert sum(map(len, tensor.read_pieces(256))) == tensor.n_bytes
    except QwenEdgeError:
        return
