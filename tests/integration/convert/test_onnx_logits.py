"""Exported graphs in ONNX Runtime against the reference forward pass, over the weights that they store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qwen_edge.convert import GraphForm, OnnxPrecision, export_onnx
from qwen_edge.convert.checkpoint import open_checkpoint
from qwen_edge.convert.onnx_importance import tokenize
from qwen_edge.convert.reference import Reference
from qwen_edge.logits import compare_logits
from tests.golden.checkpoints import CHECKPOINTS, tokens_of
from tests.onnx_models import OnnxModel, bind_in_place
from tests.onnx_stored import write_stored

TINY_QWEN3 = Path(__file__).parents[3] / "examples" / "tiny-qwen3"
FORMS = {"fused": GraphForm(), "plain": GraphForm(plain=True)}
# float32 sums in another order: 1.1e-5 was measured on logits of up to 10.
TOLERANCE = 1e-4
# Kinds of weights, as the arguments of OnnxPrecision; all that is rounded is known to write_stored().
PRECISIONS: dict[str, dict[str, Any]] = {
    "f32": {},
    "f16": {"weights": "f16"},
    "int8": {"weights": "int8"},
    "int8-asymmetric-128": {"weights": "int8", "symmetric": False, "block_size": 128},
    "int4": {"weights": "int4"},
    "int4-asymmetric-64": {"weights": "int4", "symmetric": False, "block_size": 64},
    "int4-f16-head": {"weights": "int4", "head": "f16"},
    "f16-int4-head": {"weights": "f16", "head": "int4"},
}


def reference_logits(folder: Path, sequences: list[list[int]]) -> list[NDArray[np.float32]]:
    return Reference(open_checkpoint(folder)).logits(sequences)


def without_rounded_inputs(folder: Path) -> Path:
    """Set accuracy level 0 in all matrices: an export gives 8-bit ones level 4, which rounds inputs to 8 bits."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(model, folder / "model.onnx")
    return folder


@pytest.mark.parametrize("kind", PRECISIONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_it_computes_what_its_weights_say(name: str, form: str, kind: str, tmp_path: Path) -> None:
    checkpoint, tokens = CHECKPOINTS[name](tmp_path / "c"), tokens_of(name).tolist()
    precision = FORMS[form].precision_of(OnnxPrecision(**PRECISIONS[kind]))
    (expected,) = reference_logits(write_stored(checkpoint, tmp_path / "s", precision), [tokens])
    export_onnx(checkpoint, tmp_path / "o", precision=precision, form=FORMS[form])
    model = OnnxModel(without_rounded_inputs(tmp_path / "o"))
    # A prompt in two pieces, then a token at a time.
    first, caches = model.run([tokens[:20]])
    second, caches = model.run([tokens[20:40]], caches) if form == "plain" else model.run([tokens[:40]])
    steps = [first[0], second[0][-20:]]
    for token in tokens[40:]:
        step, caches = model.run([[token]], caches)
        steps.append(step[0])
    found = np.concatenate(steps)
    assert np.abs(expected).max() > 3, "logits near zero would agree whatever is computed"
    assert np.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_f32_is_the_trained_model(form: str, tmp_path: Path) -> None:
    export_onnx(TINY_QWEN3, tmp_path / "o", form=FORMS[form])
    checkpoint = open_checkpoint(TINY_QWEN3)
    tokens = tokenize(checkpoint, (TINY_QWEN3 / "eval" / "prose.txt").read_text())[:300]
    (expected,) = Reference(checkpoint).logits([tokens])
    found, _ = OnnxModel(tmp_path / "o").run([tokens])
    assert np.abs(found[0] - expected).max() < TOLERANCE


# Mean KLD in nat; measured 0.00023, 0.0200 and 0.0174 (fused), 0.00008, 0.0173 and 0.0143 (plain).
@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ({"weights": "int8"}, 0.0005),
        ({"weights": "int4"}, 0.03),
        ({"weights": "int4", "symmetric": False}, 0.025),
    ],
)
def test_both_forms_are_equally_close_to_the_trained_model(
    kind: dict[str, Any], limit: float, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(TINY_QWEN3)
    tokens = tokenize(checkpoint, (TINY_QWEN3 / "eval" / "prose.txt").read_text())[:512]
    (expected,) = Reference(checkpoint).logits([tokens])
    means = []
    for name, form in FORMS.items():
        export_onnx(TINY_QWEN3, tmp_path / name, precision=OnnxPrecision(**kind), form=form)
        found, _ = OnnxModel(tmp_path / name).run([tokens])
        comparison = compare_logits(expected[:-1], found[0][:-1], np.asarray(tokens[1:]))
        means.append(float(comparison.kld.mean()))
    assert max(means) < limit
    # The plain graph keeps inputs in float32 and, with int4, the embedding in 8 bits: it is no further off.
    assert means[1] < 1.05 * means[0]


def test_keys_and_values_are_written_in_place(tmp_path: Path) -> None:
    checkpoint, tokens = CHECKPOINTS["qwen3-heads"](tmp_path / "c"), tokens_of("qwen3-heads").tolist()
    (expected,) = reference_logits(checkpoint, [tokens])
    export_onnx(checkpoint, tmp_path / "o")
    model = OnnxModel(tmp_path / "o")
    caches = model.caches(1, 64)
    found = [bind_in_place(model, tokens[:30], 0, caches)]
    found += [bind_in_place(model, [token], 30 + index, caches) for index, token in enumerate(tokens[30:])]
    assert np.abs(np.concatenate(found) - expected).max() < TOLERANCE
    for array in caches.values():
        assert array[:, :, : len(tokens)].any(axis=(0, 1, 3)).all(), "all rows came into the caller's buffer"
        assert not array[:, :, len(tokens) :].any(), "and none behind them"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["qwen3", "qwen2-biased", "qwen3-yarn"])
def test_sequences_of_different_length_decode_together(name: str, form: str, tmp_path: Path) -> None:
    checkpoint, tokens = CHECKPOINTS[name](tmp_path / "c"), tokens_of(name).tolist()
    lengths, held = (23, 11), 23
    sequences = [tokens[: lengths[0] + 5], tokens[10 : 10 + lengths[1] + 5]]
    expected = reference_logits(checkpoint, sequences)
    export_onnx(checkpoint, tmp_path / "o", form=FORMS[form])
    model = OnnxModel(tmp_path / "o")
    apart = [
        model.run([tokens[:count]])[1]
        for tokens, count in ((sequences[0], lengths[0]), (sequences[1], lengths[1]))
    ]
    caches = model.caches(2, held)
    for key, array in caches.items():
        for row, (kept, count) in enumerate(zip(apart, lengths, strict=True)):
            array[row, :, :count] = kept[key][0]
    mask = np.zeros((2, held), np.int64)
    for row, count in enumerate(lengths):
        mask[row, :count] = 1
    for step in range(5):
        past = [count + step for count in lengths]
        if form == "fused":
            # Each sequence's rows lie without a gap: the mask only says how many there are.
            mask = (np.arange(held + step + 1) < np.asarray(past)[:, np.newaxis] + 1).astype(np.int64)
        else:
            mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        new = [[sequence[count]] for sequence, count in zip(sequences, past, strict=True)]
        logits, caches = model.run(new, caches, past=past, mask=mask)
        for row, count in enumerate(past):
            assert np.abs(logits[row, 0] - expected[row][count]).max() < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_logits_come_for_the_positions_asked_and_else_for_the_last(form: str, tmp_path: Path) -> None:
    checkpoint, tokens = CHECKPOINTS["qwen3-untied"](tmp_path / "c"), tokens_of("qwen3-untied").tolist()
    export_onnx(checkpoint, tmp_path / "o", form=FORMS[form])
    model = OnnxModel(tmp_path / "o")
    every, _ = model.run([tokens])
    some, _ = model.run([tokens], positions=[3, 0, 47])
    np.testing.assert_allclose(some[0], every[0][[3, 0, 47]], atol=TOLERANCE)
    model.has_positions = False
    last, _ = model.run([tokens])
    assert last.shape == (1, 1, every.shape[2])
    np.testing.assert_allclose(last[0, 0], every[0, -1], atol=TOLERANCE)


def pad_front(values: NDArray[Any], length: int, axis: int) -> NDArray[Any]:
    widths = [(0, 0)] * values.ndim
    widths[axis] = (length - values.shape[axis], 0)
    return np.pad(values, widths)


def pad_back(values: NDArray[Any], length: int, axis: int) -> NDArray[Any]:
    return np.flip(pad_front(np.flip(values, axis), length, axis), axis)


@pytest.mark.parametrize("pad", [pad_front, pad_back], ids=["front", "back"])
@pytest.mark.parametrize("kind", ["f32", "int8", "int4-asymmetric-64"])
@pytest.mark.parametrize("name", ["qwen3", "qwen2-biased", "qwen3-yarn", "qwen3-heads"])
def test_fixed_sizes_with_padding(
    name: str, kind: str, pad: Callable[[NDArray[Any], int, int], NDArray[Any]], tmp_path: Path
) -> None:
    """A prompt of 21 tokens in windows of 8 with a cache of 40 rows that is filled from behind."""
    checkpoint, tokens = CHECKPOINTS[name](tmp_path / "c"), tokens_of(name)[:21]
    size, room = 8, 40
    form = GraphForm(plain=True, fixed={"batch": 1, "tokens": size, "past": room})
    precision = form.precision_of(OnnxPrecision(**PRECISIONS[kind]))
    (expected,) = reference_logits(write_stored(checkpoint, tmp_path / "s", precision), [tokens.tolist()])
    export_onnx(checkpoint, tmp_path / "o", precision=precision, form=form)
    model = OnnxModel(tmp_path / "o")
    assert model.inputs["past_key_values.0.key"][2] == room
    assert model.outputs["logits"] == [1, 1, expected.shape[1]]
    caches = model.caches(1, room)
    for start in range(0, len(tokens), size):
        new = tokens[start : start + size]
        count = len(new)
        is_new = pad(np.ones((1, count), np.int64), size, 1)
        columns = np.flatnonzero(is_new[0])
        feeds = {
            "input_ids": pad(new[np.newaxis], size, 1),
            "position_ids": pad(np.arange(start, start + count)[np.newaxis], size, 1),
            "attention_mask": np.concatenate(
                [pad_front(np.ones((1, start), np.int64), room, 1), is_new], axis=1
            ),
            **caches,
        }
        for index in range(count):
            position = np.array([columns[index]])
            logits, *present = model.session.run(None, feeds | {"logits_positions": position})
            assert np.isfinite(logits).all()
            assert np.abs(logits[0, 0] - expected[start + index]).max() < TOLERANCE
        for key, array in zip(caches, present, strict=True):
            rows = array[:, :, room + columns]
            caches[key] = np.concatenate([caches[key], rows], axis=2)[:, :, -room:]
