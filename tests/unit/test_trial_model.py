"""Files of random weights, read back by the gguf package."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from qwen_edge.catalog import MODELS, Shape
from qwen_edge.errors import UnsupportedError
from qwen_edge.gguf_header import read_header
from qwen_edge.memory import estimate_tensor_bytes
from qwen_edge.quant_types import TENSOR_TYPES
from qwen_edge.trial_blocks import BLOCK_FORMS, random_blocks, random_floats
from qwen_edge.trial_model import write_trial_model

SMALL = Shape(
    n_layers=4,
    hidden_size=256,
    ffn_size=512,
    n_heads=4,
    n_kv_heads=2,
    head_dim=64,
    vocab_size=300,
    is_tied=True,
    has_qk_norm=True,
)


# The gguf package does not read all of them; llama.cpp itself does, in integration/runtime/test_trial_types.py.
READABLE = [name for name in BLOCK_FORMS if name in {kind.name for kind in gguf.quants._type_traits}]


def test_every_quantized_type_has_a_form() -> None:
    assert set(BLOCK_FORMS) == {row.name for row in TENSOR_TYPES.values() if row.block_weights > 1}
    assert set(BLOCK_FORMS) - set(READABLE) <= {"Q1_0", "Q2_0"}


@pytest.mark.parametrize("type_name", READABLE)
def test_blocks_have_the_stated_size_and_weights(type_name: str) -> None:
    blocks = random_blocks(BLOCK_FORMS[type_name], 4000, 0.05, np.random.default_rng(1))
    assert blocks.itemsize == TENSOR_TYPES[type_name].block_bytes
    kind = gguf.GGMLQuantizationType[type_name]
    weights = gguf.quants.dequantize(np.frombuffer(blocks.tobytes(), np.uint8).reshape(4000, -1), kind)
    assert weights.size == 4000 * TENSOR_TYPES[type_name].block_weights
    assert np.sqrt(np.mean(weights**2)) == pytest.approx(0.05, rel=0.03)
    assert abs(np.mean(weights)) < 0.002
    largest = np.abs(weights).max(axis=1)
    assert largest.std() > 0.05 * largest.mean(), "blocks differ in scale, so that a mix-up is seen"


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_floats_have_the_stated_rms(type_name: str) -> None:
    values = random_floats(type_name, 100_000, 0.05, np.random.default_rng(1))
    assert values.itemsize == TENSOR_TYPES[type_name].block_bytes
    kind = gguf.GGMLQuantizationType[type_name]
    weights = gguf.quants.dequantize(np.frombuffer(values.tobytes(), np.uint8).reshape(1, -1), kind)
    assert np.sqrt(np.mean(weights.astype(np.float64) ** 2)) == pytest.approx(0.05, rel=0.02)


def test_bytes_of_three_values_are_those_that_a_quantizer_writes() -> None:
    blocks = random_blocks(BLOCK_FORMS["TQ1_0"], 20_000, 1.0, np.random.default_rng(1))
    valid = {-(-256 * level // 243) for level in range(243)}
    assert set(np.unique(blocks["q"])) == valid
    assert set(np.unique(blocks["h"])) == {-(-256 * level // 243) for level in range(0, 243, 3)}
    pairs = random_blocks(BLOCK_FORMS["TQ2_0"], 20_000, 1.0, np.random.default_rng(1))["q"]
    assert {int(pair) >> shift & 3 for pair in np.unique(pairs) for shift in (0, 2, 4, 6)} == {0, 1, 2}
    assert len(np.unique(pairs)) == 81


def test_levels_of_q8_0_never_reach_what_cannot_be_negated() -> None:
    blocks = random_blocks(BLOCK_FORMS["Q8_0"], 10_000, 1.0, np.random.default_rng(1))
    assert (blocks["q"].min(), blocks["q"].max()) == (-127, 127)


@pytest.mark.parametrize(
    "type_name", ["F32", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M", "Q2_K", "IQ1_M", "TQ1_0"]
)
@pytest.mark.parametrize("is_tied", [True, False])
def test_the_gguf_package_reads_what_is_written(tmp_path: Path, type_name: str, is_tied: bool) -> None:
    shape = replace(SMALL, is_tied=is_tied)
    path = tmp_path / "trial.gguf"
    size_bytes = write_trial_model(path, shape, type_name)
    assert path.stat().st_size == size_bytes
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "qwen3"
    assert reader.fields["qwen3.attention.head_count_kv"].contents() == 2
    assert reader.fields["qwen3.rope.freq_base"].contents() == 1_000_000
    assert sum(int(tensor.n_elements) for tensor in reader.tensors) == shape.n_weights
    assert sum(-(-int(tensor.n_bytes) // 32) * 32 for tensor in reader.tensors) == estimate_tensor_bytes(
        shape, type_name
    )
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    assert list(by_name["blk.3.ffn_down.weight"].shape) == [512, 256]
    assert list(by_name["blk.0.attn_q_norm.weight"].shape) == [64]
    assert ("output.weight" in by_name) is not is_tied
    for tensor in reader.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        centre = 1.0 if tensor.name.endswith("norm.weight") else 0.0
        assert np.isfinite(weights).all()
        assert np.mean(weights) == pytest.approx(centre, abs=0.05)


def test_our_own_reader_agrees(tmp_path: Path) -> None:
    write_trial_model(tmp_path / "trial.gguf", SMALL, "Q4_K_M", architecture="qwen2", n_ctx_train=512)
    header = read_header(tmp_path / "trial.gguf")
    assert header.metadata["qwen2.context_length"] == 512
    assert {tensor.type_name for tensor in header.tensors} == {"F32", "Q4_K", "Q6_K"}
    assert header.n_weights == SMALL.n_weights


def test_equal_arguments_give_equal_files_and_another_seed_others(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_trial_model(tmp_path / name, SMALL, "Q4_0", seed=seed)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_every_shape_of_the_catalog_can_be_planned(tmp_path: Path) -> None:
    """Rows that do not divide into blocks get another type; the file holds it."""
    shape = MODELS["qwen2.5-coder-0.5b"].shape
    assert shape is not None
    path = tmp_path / "trial.gguf"
    write_trial_model(path, replace(shape, n_layers=1, vocab_size=320), "Q4_K_M", architecture="qwen2")
    types = {tensor.name: tensor.type_name for tensor in read_header(path).tensors}
    assert types["blk.0.attn_q.weight"] == "Q5_0"  # rows of 896
    assert types["blk.0.attn_q.bias"] == "F32"


def test_progress_adds_up_and_a_refused_type_leaves_nothing(tmp_path: Path) -> None:
    pieces: list[int] = []
    write_trial_model(tmp_path / "trial.gguf", SMALL, "Q8_0", progress=pieces.append)
    assert sum(pieces) == read_header(tmp_path / "trial.gguf").tensor_bytes
    with pytest.raises(UnsupportedError, match="Q1_0 wants rows"):
        write_trial_model(tmp_path / "other.gguf", replace(SMALL, hidden_size=192), "Q1_0")
    assert [path.name for path in tmp_path.iterdir()] == ["trial.gguf"]
