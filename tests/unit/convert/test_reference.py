"""The reference forward pass against the logits of transformers, kept in tests/golden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.convert.checkpoint import open_checkpoint
from qwen_edge.convert.reference import Reference
from qwen_edge.errors import CheckpointError, ConfigError
from tests import synthetic
from tests.golden.checkpoints import CHECKPOINTS, tokens_of

GOLDEN = Path(__file__).parents[2] / "golden" / "reference_logits.npz"
# float32 sums in another order: 7e-6 was measured on logits of up to 6.
TOLERANCE = 5e-5


def reference(folder: Path) -> Reference:
    return Reference(open_checkpoint(folder))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_it_equals_transformers(name: str, tmp_path: Path) -> None:
    expected = np.load(GOLDEN)[name]
    (logits,) = reference(CHECKPOINTS[name](tmp_path)).logits([tokens_of(name).tolist()])
    assert logits.dtype == np.float32
    assert np.abs(expected).max() > 3, "logits near zero would agree whatever is computed"
    assert np.abs(logits - expected).max() < TOLERANCE


@pytest.mark.parametrize("left_out", ["rope_scaling", "rope_theta", "rms_norm_eps"])
def test_each_parameter_matters(left_out: str, tmp_path: Path) -> None:
    folder = CHECKPOINTS["qwen3-yarn"](tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config[left_out] = {"rope_scaling": None, "rope_theta": 2e6, "rms_norm_eps": 0.1}[left_out]
    (folder / "config.json").write_text(json.dumps(config))
    (logits,) = reference(folder).logits([tokens_of("qwen3-yarn").tolist()])
    assert np.abs(logits - np.load(GOLDEN)["qwen3-yarn"]).max() > 100 * TOLERANCE


def test_sequences_and_later_tokens_do_not_touch_each_other(tmp_path: Path) -> None:
    model = reference(CHECKPOINTS["qwen2-biased"](tmp_path))
    tokens = tokens_of("qwen2-biased").tolist()
    (alone,) = model.logits([tokens])
    beginning, among = model.logits([tokens[:10], tokens])
    np.testing.assert_allclose(beginning, alone[:10], atol=TOLERANCE)
    np.testing.assert_allclose(among, alone, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_other_types_are_the_same_numbers(dtype: str, tmp_path: Path) -> None:
    narrow = synthetic.write_checkpoint(tmp_path / "narrow", dtype=dtype, std=0.25, n_shards=2)
    wide = tmp_path / "wide"
    synthetic.write_checkpoint(wide, dtype="F32", std=0.25)
    tensors = dict(open_checkpoint(narrow).tensors)
    _overwrite(wide, {name: _values(entry) for name, entry in tensors.items()})
    (from_narrow,), (from_wide,) = (reference(folder).logits([[1, 2, 3]]) for folder in (narrow, wide))
    np.testing.assert_array_equal(from_narrow, from_wide)


def _values(entry: Any) -> np.ndarray:
    data = b"".join(entry.read_pieces(1 << 20))
    return np.frombuffer(data, synthetic.DTYPES[entry.dtype]).astype(np.float32).reshape(entry.shape)


def _overwrite(folder: Path, values: dict[str, np.ndarray]) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file(values, folder / "model.safetensors")


def test_the_observer_sees_the_inputs_of_every_matrix(tmp_path: Path) -> None:
    seen: dict[str, tuple[int, ...]] = {}
    model = reference(synthetic.write_checkpoint(tmp_path))
    model.logits([[1, 2, 3]], observer=lambda name, inputs: seen.update({name: inputs.shape}))
    tensors = {
        name.removeprefix("model."): shape
        for name, shape in synthetic.tensor_shapes(synthetic.TINY).items()
        if ".layers." in name and len(shape) == 2
    }
    assert seen == {name: (3, columns) for name, (_, columns) in tensors.items()}


@pytest.mark.parametrize("sequences", [[[]], [[300]], [[1], [-1]]])
def test_tokens_outside_the_vocabulary_are_refused(sequences: list[list[int]], tmp_path: Path) -> None:
    model = reference(synthetic.write_checkpoint(tmp_path))
    with pytest.raises(ConfigError, match=r"0\.\.299"):
        model.logits(sequences)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_named(name: str, value: float, tmp_path: Path) -> None:
    folder = synthetic.write_checkpoint(tmp_path, dtype="F32")
    values = {name: _values(entry).copy() for name, entry in open_checkpoint(folder).tensors.items()}
    values[name].flat[7] = value
    _overwrite(folder, values)
    with pytest.raises(CheckpointError, match=name):
        reference(folder).logits([[1, 2]])
