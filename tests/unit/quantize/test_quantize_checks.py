"""Plan, refusals and report with a quantizer that is not llama.cpp's."""

from __future__ import annotations

import collections
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from qwen_edge import quantize
from qwen_edge.errors import ConfigError, GGUFError, ModelNotFoundError, UnsupportedError
from qwen_edge.gguf_header import read_header
from qwen_edge.native.quantizer import Fallback, Outcome
from qwen_edge.quantize import plan as plan_module
from qwen_edge.quantize import plan_quantization, predict_size, quantize_file

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def quantizer_says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the quantizer announce these types; every other tensor stays as it is."""

    def announce(needs_imatrix: bool = False, fallbacks: tuple[Fallback, ...] = (), **types: str) -> None:
        def run(source: Path, target: Path | None, ftype: int, **_: object) -> Outcome:
            assert target is None, "these tests stop before the work"
            found = {t.name: t.type_name for t in read_header(source).tensors}
            found |= {name.replace("__", "."): kind for name, kind in types.items()}
            return Outcome(found, fallbacks, needs_imatrix, 0)

        monkeypatch.setattr(plan_module, "run_quantizer", run)

    return announce


def test_plan_counts_bytes_and_bits(float_gguf: Path, quantizer_says: Callable[..., None]) -> None:
    quantizer_says(blk__0__attn_q__weight="Q8_0")
    plan = plan_quantization(float_gguf, "q8_0")
    n_tensor_bytes = 3 * 256 // 32 * 34 + 256 * 4
    assert plan.bits_per_weight == 8 * n_tensor_bytes / (3 * 256 + 256)
    assert plan.type_counts == {"Q8_0": 1, "F32": 1}
    assert (plan.source_type, plan.type, plan.n_params) == ("F16", "Q8_0", 1024)
    header = read_header(float_gguf)
    # file_type is in the source, quantization_version is added: 8 (length of the key), key, 4 (type), 4 (value).
    added = 16 + len("general.quantization_version")
    new_header = -(-(header.header_bytes + added) // 32) * 32
    assert plan.predicted_bytes == new_header + 832 + 1024
    assert predict_size(float_gguf, "Q8_0") == plan.predicted_bytes
    json.dumps(plan.to_dict())


def test_source_without_a_stated_type_has_that_of_most_weights(
    make_gguf: Callable[..., Path], quantizer_says: Callable[..., None]
) -> None:
    quantizer_says()
    path = make_gguf(tensors={"a.weight": np.ones((2, 64), np.float16), "b.weight": np.ones(64, np.float32)})
    assert plan_quantization(path, "F16").source_type == "F16"


def test_type_that_needs_an_imatrix_is_refused_with_alternatives(
    float_gguf: Path, quantizer_says: Callable[..., None]
) -> None:
    quantizer_says(needs_imatrix=True)
    with pytest.raises(UnsupportedError, match="needs an importance matrix") as caught:
        predict_size(float_gguf, "IQ2_XXS")
    assert caught.value.hint == "The smallest types that need none: Q2_K, IQ3_S, IQ3_M."


def test_requantizing_has_to_be_asked_for(
    make_gguf: Callable[..., Path], quantizer_says: Callable[..., None]
) -> None:
    weights = np.ones((2, 256), np.float32)
    path = make_gguf(quantized={"a.weight": (weights, gguf.GGMLQuantizationType.Q8_0)}, file_type=7)
    quantizer_says()
    assert plan_quantization(path, "Q8_0").requantized == ()
    quantizer_says(a__weight="Q4_0")
    with pytest.raises(ConfigError, match=r"quantized already \(Q8_0\): 1 of 1 tensors"):
        plan_quantization(path, "Q4_0")
    assert plan_quantization(path, "Q4_0", allow_requantize=True).requantized == ("a.weight",)


def test_split_and_empty_sources_are_refused(
    make_gguf: Callable[..., Path], quantizer_says: Callable[..., None]
) -> None:
    quantizer_says()
    with pytest.raises(GGUFError, match="no weights"):
        predict_size(make_gguf(), "Q4_0")
    split = make_gguf(tensors={"a.weight": np.ones((1, 32), np.float32)}, name="split.gguf")
    writer = gguf.GGUFWriter(split, "qwen3")
    writer.add_uint16("split.count", 3)
    writer.add_tensor("a.weight", np.ones((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="one of 3 parts"):
        predict_size(split, "Q4_0")


def test_target_is_checked_before_anything_else(float_gguf: Path, tmp_path: Path) -> None:
    existing = tmp_path / "there.gguf"
    existing.write_bytes(b"old")
    with pytest.raises(ConfigError, match="exists already"):
        quantize_file(float_gguf, existing, "Q4_0")
    with pytest.raises(ConfigError, match="is the source file"):
        quantize_file(float_gguf, float_gguf, "Q4_0", overwrite=True)
    link = tmp_path / "link.gguf"
    link.hardlink_to(float_gguf)
    with pytest.raises(ConfigError, match="is the source file"):
        quantize_file(float_gguf, link, "Q4_0", overwrite=True)
    with pytest.raises(ConfigError, match="is a folder"):
        quantize_file(float_gguf, tmp_path, "Q4_0")
    with pytest.raises(ModelNotFoundError):
        quantize_file(tmp_path / "none.gguf", tmp_path / "x.gguf", "Q4_0")
    with pytest.raises(ConfigError, match="n_threads"):
        quantize_file(float_gguf, tmp_path / "x.gguf", "Q4_0", n_threads=0)
    assert existing.read_bytes() == b"old"


def test_full_disk_is_seen_before_the_work(
    float_gguf: Path, tmp_path: Path, quantizer_says: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer_says()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 100, 100))
    with pytest.raises(OSError, match="not enough disk space") as caught:
        quantize_file(float_gguf, tmp_path / "new" / "x.gguf", "F16")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "new").exists()


def test_public_names_exist() -> None:
    assert all(getattr(quantize, name) is not None for name in quantize.__all__)
    with pytest.raises(AttributeError):
        _ = quantize.nothing
