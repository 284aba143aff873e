"""What this machine computes of the tiny model: the same with fast and plain kernels, and what is damaged is found."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from qwen_edge.bench import across_cpus, cpu_worker
from qwen_edge.bench.cpu_comparison import compare_records, distance, noise_bounds
from qwen_edge.bench.cpu_record import CpuRecord, Rows
from qwen_edge.bench.cpu_recording import PROMPTS, record
from qwen_edge.catalog_types import Shape
from qwen_edge.convert import convert_checkpoint
from qwen_edge.convert.checkpoint import open_checkpoint
from qwen_edge.convert.reference import Reference
from qwen_edge.errors import ConfigError
from qwen_edge.quantize import quantize_file
from qwen_edge.trial_model import write_trial_model

CHECKPOINT = Path(__file__).parents[3] / "examples" / "tiny-qwen3"
ONE_THREAD = {"n_threads": 1}


@pytest.fixture(scope="module")
def files(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("types")
    made = [folder / f"tiny-{name}.gguf" for name in ("Q4_0", "Q8_0", "Q4_K_M")]
    for path in made:
        quantize_file(tiny_bf16, path, path.stem.removeprefix("tiny-"))
    return made


@pytest.fixture(scope="module")
def here(files: list[Path], tiny_onnx: Path) -> CpuRecord:
    return record([*files, tiny_onnx], "here", n_steps=6, settings=ONE_THREAD)


def test_a_record_has_every_file_with_every_kind_of_kernels(here: CpuRecord, tiny_onnx: Path) -> None:
    assert here.failures == ()
    found = [(run.file, run.kernels, run.engine) for run in here.runs]
    names = ("tiny-Q4_0.gguf", "tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf")
    assert found == [
        *((name, kernels, "llama.cpp") for name in names for kernels in ("fast", "plain")),
        (tiny_onnx.name, "fast", "onnxruntime"),
    ]
    # The mixtures hold the embedding in Q6_K.
    assert [run.rounding for run in here.runs[::2]] == [
        "8 bits in blocks of 256",
        "8 bits in blocks of 32",
        "8 bits in blocks of 256",
        "ONNX, float32",
    ]
    assert "system_info" in here.machine["native"]
    for run in here.runs:
        assert len(run.prefill.sampled) == len(run.decode.sampled) == sum(map(len, run.prompts))
        assert run.greedy.tokens.shape == (len(PROMPTS), 6, 8)
        assert run.settings["threads"] == 1


def test_plain_kernels_are_within_the_bound_of_fast_ones(here: CpuRecord) -> None:
    plain = [dataclasses.replace(run, kernels="fast") for run in here.runs if run.kernels == "plain"]
    for each in compare_records(here, dataclasses.replace(here, runs=tuple(plain))):
        assert not each.is_finding, each
    bounds = noise_bounds(here)
    # Of one machine: what the docstring tells of the noise, with room for other CPUs.
    assert bounds["ONNX, float32"].rms < 0.001 < bounds["8 bits in blocks of 256"].rms < 0.06


def test_a_damaged_kernel_is_found(here: CpuRecord) -> None:
    """Every eighth output of the head is off, as where a kernel mixes up the rows of a block."""
    run = here.runs[0]
    logits = run.decode.sampled.copy()
    logits[:, ::8] *= 0.7
    damaged = dataclasses.replace(run, decode=dataclasses.replace(run.decode, sampled=logits))
    (found,) = compare_records(here, dataclasses.replace(here, label="damaged", runs=(damaged,)))
    assert found.is_finding
    assert {way.way: way.verdict for way in found.ways} == {"prefill": "equal", "decode": "beyond"}


def test_the_oracle_agrees_with_the_reference_forward_pass(tmp_path: Path) -> None:
    path = tmp_path / "tiny-F32.gguf"
    convert_checkpoint(CHECKPOINT, path, dtype="f32")
    settings = {**ONE_THREAD, "kv_type": "f32"}
    (run,) = record([path], "exact", n_steps=1, kinds=("plain",), settings=settings).runs
    logits = np.concatenate(Reference(open_checkpoint(CHECKPOINT)).logits(run.prompts))
    for rows in (run.prefill, run.decode):
        assert distance(Rows.from_logits(logits), rows).rms < 1e-4


def test_a_type_is_nearer_to_its_own_oracle_than_the_bound(files: list[Path], tmp_path: Path) -> None:
    source = files[1]
    exact_file = tmp_path / source.name
    quantize_file(source, exact_file, "F32", allow_requantize=True)
    settings = {**ONE_THREAD, "kv_type": "f32"}
    exact = record([exact_file], "exact", n_steps=1, kinds=("plain",), settings=settings)
    found = record([source], "here", n_steps=1, settings=ONE_THREAD)
    for run in found.runs:
        assert run.sha256 != exact.runs[0].sha256
        for way in ("prefill", "decode"):
            assert 1e-4 < distance(getattr(exact.runs[0], way), getattr(run, way)).rms < 0.03


def test_a_file_without_tokenizer_gets_fixed_tokens(tmp_path: Path) -> None:
    path = tmp_path / "random-Q4_0.gguf"
    shape = Shape(
        n_layers=1,
        hidden_size=256,
        ffn_size=512,
        n_heads=4,
        n_kv_heads=2,
        head_dim=64,
        vocab_size=256,
        is_tied=True,
        has_qk_norm=True,
    )
    write_trial_model(path, shape, "Q4_0")
    made = record([path], n_steps=2, settings=ONE_THREAD)
    assert made.label == made.machine["cpu"]
    assert {len(run.prompts[0]) for run in made.runs} == {18}
    assert all(not each.is_finding for each in compare_records(made, made))


def test_a_file_that_does_not_load_leaves_the_others(files: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(files[0].read_bytes()[:10_000])
    made = record([broken, files[0]], n_steps=1, kinds=("fast",), settings=ONE_THREAD)
    assert [run.file for run in made.runs] == [files[0].name]
    (failure,) = made.failures
    assert failure.startswith("broken.gguf, fast kernels: ")


def test_a_process_that_dies_takes_only_its_file_along(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_edge.bench import cpu_recording
    from qwen_edge.native import child

    started: list[Any] = []

    def start_child(module: str, args: list[str]) -> Any:
        process = real(module, args)
        started.append(process)
        if len(started) == 1:
            os.kill(process.pid, signal.SIGKILL)
        return process

    real = child.start_child
    monkeypatch.setattr(cpu_recording.child, "start_child", start_child)
    made = record(files[:2], n_steps=1, kinds=("fast",), settings=ONE_THREAD)
    assert len(started) == 2
    assert [run.file for run in made.runs] == [files[1].name]
    (failure,) = made.failures
    assert "signal SIGKILL" in failure


def test_files_of_one_name_are_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="same name"):
        record([files[0], tmp_path / files[0].name])


def test_a_prompt_that_is_too_long_is_refused(files: list[Path]) -> None:
    with pytest.raises(ConfigError, match="a prompt has"):
        cpu_worker.evaluate(files[0], "fast", ["one two three " * 60], 1, ONE_THREAD)


@pytest.mark.parametrize("output_format", ["human", "json"])
def test_the_commands(files: list[Path], here: CpuRecord, tmp_path: Path, output_format: str) -> None:
    reference, other, damaged = (tmp_path / f"{name}.npz" for name in ("reference", "other", "damaged"))
    here.save(reference)
    made = CliRunner().invoke(
        across_cpus.main,
        ["record", str(files[1]), "-o", str(other), "--label", "again", "--steps", "6", "--threads", "1"],
        catch_exceptions=False,
    )
    assert made.exit_code == 0
    assert made.stdout == f"{other}: again, 2 runs\n"
    arguments = ["compare", str(reference), str(other), "--format", output_format]
    result = CliRunner().invoke(across_cpus.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    if output_format == "human":
        assert "again, compared with here" in result.stdout
        assert "equal" in result.stdout
    else:
        document = json.loads(result.stdout)
        assert document["schema"] == "qwen-edge/across-cpus-comparison/1"
        assert [row["kernels"] for row in document["comparisons"]] == ["fast", "plain"]
    again = CpuRecord.load(other)
    wrong = dataclasses.replace(
        again.runs[0],
        prefill=dataclasses.replace(again.runs[0].prefill, sampled=again.runs[0].prefill.sampled * 0.5),
    )
    dataclasses.replace(again, runs=(wrong,)).save(damaged)
    arguments[2] = str(damaged)
    result = CliRunner().invoke(across_cpus.main, arguments, catch_exceptions=False)
    assert result.exit_code == 1
    if output_format == "human":
        assert "FINDING" in result.stdout
