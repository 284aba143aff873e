"""Every type of the table, made from the tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from qwen_edge.config import GREEDY, LoadConfig
from qwen_edge.engines.llama import LlamaEngine
from qwen_edge.errors import ConfigError, GGUFError, NativeError, UnsupportedError
from qwen_edge.native import library
from qwen_edge.native.quantizer import run_quantizer
from qwen_edge.quant_types import FILE_TYPES
from qwen_edge.quantize import plan_quantization, predict_size, quantize_file

MADE_TYPES = [row.name for row in FILE_TYPES.values() if not row.needs_imatrix]
# Newer than the gguf package.
NEWER_TYPES = ("Q2_0",)
REFUSED_TYPES = [row.name for row in FILE_TYPES.values() if row.needs_imatrix]


@pytest.mark.parametrize("name", MADE_TYPES)
def test_type_has_its_predicted_size_loads_and_decodes(name: str, tiny_bf16: Path, tmp_path: Path) -> None:
    target = tmp_path / "folder" / f"{name}.gguf"
    report = quantize_file(tiny_bf16, target, name, n_threads=1)
    assert report.size_bytes == report.predicted_bytes == target.stat().st_size
    assert sorted(path.name for path in target.parent.iterdir()) == [target.name, report.manifest.name]
    assert (report.type, report.source_type, report.fallbacks, report.requantized) == (name, "BF16", (), 0)
    assert report.source_size_bytes == tiny_bf16.stat().st_size
    assert 0 < report.peak_memory_bytes < 500e6
    json.dumps(report.to_dict())

    if name not in NEWER_TYPES:
        tensors = gguf.GGUFReader(target).tensors
        n_weights = sum(int(tensor.n_elements) for tensor in tensors)
        assert report.n_params == n_weights
        assert report.bits_per_weight == 8 * sum(int(tensor.n_bytes) for tensor in tensors) / n_weights

    config = LoadConfig(n_ctx=64, n_threads=1, safe_kernels=False)
    engine = LlamaEngine(target, config)
    try:
        assert report.n_params == engine.info.n_params
        assert report.bits_per_weight == 8 * engine.info.weights_bytes / engine.info.n_params
        tokens = engine.tokenize("The cat sat on the")
        assert np.isfinite(engine.score(tokens)).all()
        context = engine.new_context()
        context.append(tokens)
        context.start_sampling(GREEDY)
        assert 0 <= context.sample() < engine.info.n_vocab
    finally:
        engine.close()


@pytest.mark.parametrize("name", REFUSED_TYPES)
def test_type_without_its_imatrix_is_refused(name: str, tiny_bf16: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"{name} needs an importance matrix"):
        quantize_file(tiny_bf16, tmp_path / "x.gguf", name)
    assert not list(tmp_path.iterdir())
    # The flag of the table is the quantizer's own refusal, not a guess.
    with pytest.raises(NativeError, match="requires an imatrix"):
        run_quantizer(tiny_bf16, tmp_path / "x.gguf", FILE_TYPES[name].llama_id, n_threads=1)


def test_ids_are_those_of_the_bindings() -> None:
    for row in FILE_TYPES.values():
        prefix = "ALL" if row.name == "F32" else "MOSTLY"
        assert getattr(library.api(), f"LLAMA_FTYPE_{prefix}_{row.name}") == row.llama_id


def test_progress_ends_at_the_whole(tiny_bf16: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    plans = []
    quantize_file(
        tiny_bf16,
        tmp_path / "x.gguf",
        "Q8_0",
        on_plan=plans.append,
        progress=lambda *state: seen.append(state),
    )
    done = [state[0] for state in seen]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == seen[0][1]
    assert [plan.type for plan in plans] == ["Q8_0"]


def test_pure_has_one_type_for_all_matrices(tiny_bf16: Path, tmp_path: Path) -> None:
    report = quantize_file(tiny_bf16, tmp_path / "x.gguf", "Q4_K_M", pure=True)
    assert set(report.type_counts) == {"F32", "Q4_K"}
    assert report.size_bytes == predict_size(tiny_bf16, "Q4_K_M", pure=True)


def test_requantizing(tiny_bf16: Path, tmp_path: Path) -> None:
    once = tmp_path / "once.gguf"
    quantize_file(tiny_bf16, once, "Q8_0")
    with pytest.raises(ConfigError, match=r"quantized already \(Q8_0\): 43 of 68 tensors"):
        quantize_file(once, tmp_path / "twice.gguf", "Q4_0")
    report = quantize_file(once, tmp_path / "twice.gguf", "Q4_0", allow_requantize=True)
    assert (report.source_type, report.requantized) == ("Q8_0", 43)
    assert report.size_bytes == report.predicted_bytes
    # The same type again copies the tensors and loses nothing.
    assert quantize_file(once, tmp_path / "copy.gguf", "Q8_0").requantized == 0
    assert (tmp_path / "copy.gguf").read_bytes() == once.read_bytes()


def test_rows_of_64_fall_back_to_smaller_blocks(tmp_path: Path) -> None:
    source = narrow_model(tmp_path / "narrow.gguf")
    plan = plan_quantization(source, "Q4_K_S")
    assert {(row.tensor, row.wanted, row.used) for row in plan.fallbacks} >= {
        ("blk.0.ffn_up.weight", "Q4_K", "Q5_0"),
        ("blk.0.attn_v.weight", "Q5_K", "Q5_1"),
    }
    report = quantize_file(source, tmp_path / "out.gguf", "Q4_K_S")
    assert report.fallbacks == plan.fallbacks
    assert report.size_bytes == report.predicted_bytes


def narrow_model(path: Path) -> Path:
    """Write a qwen3 model of one layer with rows of 64 weights, of which the quantizer needs only the tensors."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    rows = {
        "token_embd": 32,
        "blk.0.attn_q": 64,
        "blk.0.attn_k": 32,
        "blk.0.attn_v": 32,
        "blk.0.attn_output": 64,
    }
    rows |= {"blk.0.ffn_gate": 64, "blk.0.ffn_up": 64, "blk.0.ffn_down": 64}
    for name, count in rows.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=(count, 64)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    source = narrow_model(tmp_path / "narrow.gguf")
    data = bytearray(source.read_bytes())
    data[-2:] = b"\x00\x7e"  # NaN in float16
    source.write_bytes(data)
    with pytest.raises(NativeError, match="cannot quantize"):
        quantize_file(source, tmp_path / "x.gguf", "Q8_0")
    assert not (tmp_path / "x.gguf").exists()


def test_truncated_source(tiny_bf16: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_bf16.read_bytes()[:-100_000])
    with pytest.raises(GGUFError, match="cut off"):
        quantize_file(cut, tmp_path / "x.gguf", "Q8_0")


def command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qwen_edge", "quantize", *map(str, args)], capture_output=True, text=True
    )


def test_command(tiny_bf16: Path, tmp_path: Path) -> None:
    source = tmp_path / "tiny-bf16.gguf"
    source.hardlink_to(tiny_bf16)
    size = predict_size(source, "Q4_0")

    dry = command(source, "--type", "q4_0", "--dry-run", "--format", "json")
    assert (dry.returncode, json.loads(dry.stdout)["predicted_bytes"]) == (0, size)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-bf16.gguf"]

    made = command(source, "--type", "q4_0", "--threads", "1")
    target = tmp_path / "tiny-Q4_0.gguf"
    assert made.returncode == 0, made.stderr
    assert target.stat().st_size == size
    assert made.stdout.startswith(
        f"{target}  3.7 MB, Q4_0, 4.89 bits per weight, 5.8 M weights in 68 tensors"
    )
    assert "tiny-bf16.gguf (BF16, 11.7 MB) as Q4_0: 3.7 MB" in made.stderr
    assert f'Next: qwen-edge run {target} "Hello"' in made.stderr

    again = command(source, "--type", "q4_0")
    assert (again.returncode, again.stdout) == (1, "")
    assert "exists already" in again.stderr
    forced = command(source, "--type", "q4_0", "--force", "--format", "json")
    assert json.loads(forced.stdout)["size_bytes"] == size
