"""`make verify-real` against the stand-in hub, which serves the tiny model as Qwen3-0.6B."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hub_server import Hub

from qwen_edge.convert import convert_checkpoint
from qwen_edge.quantize import quantize_file

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "examples" / "tiny-qwen3"
N_QUESTIONS = 20


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "hub"
    shutil.copytree(CHECKPOINT, folder / "Qwen" / "Qwen3-0.6B")
    published = folder / "Qwen" / "Qwen3-0.6B-GGUF" / "Qwen3-0.6B-Q8_0.gguf"
    source = convert_checkpoint(CHECKPOINT, tmp_path / "source.gguf").path
    quantize_file(source, published, "Q8_0", n_threads=1)
    with Hub(folder) as server:
        yield server


def verify_real(hub: Hub, out: Path) -> tuple[int, str]:
    questions = out.with_name("questions")
    questions.mkdir()
    for name in ("chat.jsonl", "tools.jsonl"):
        lines = (CHECKPOINT / "eval" / name).read_text().splitlines(keepends=True)
        (questions / name).write_text("".join(lines[:N_QUESTIONS]))
    run = subprocess.run(
        [sys.executable, "-m", "tests.verify_real", "--out", str(out), "--questions", str(questions)],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": hub.endpoint, "MODELSCOPE_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    return run.returncode, (out / "report.md").read_text() if out.exists() else run.stderr


def test_the_report_finds_everything_as_it_should_be(hub: Hub, tmp_path: Path) -> None:
    code, report = verify_real(hub, tmp_path / "out")
    assert code == 0, report
    assert report.startswith("# qwen3-0.6b, from the hub to a verified file: everything as it should be")
    assert "68 tensors and" in report
    assert "a second conversion gives the same digest" in report


def test_a_published_file_that_differs_is_a_problem(hub: Hub, tmp_path: Path) -> None:
    published = hub.folder / "Qwen" / "Qwen3-0.6B-GGUF" / "Qwen3-0.6B-Q8_0.gguf"
    reader = gguf.GGUFReader(published, "r+")
    (tensor,) = (tensor for tensor in reader.tensors if tensor.name == "blk.2.ffn_up.weight")
    tensor.data[:] = np.roll(tensor.data, 1, axis=0)
    reader.data.flush()
    code, report = verify_real(hub, tmp_path / "out")
    assert code == 1
    assert "**tensor `blk.2.ffn_up.weight`" in report
    assert "**`Qwen3-0.6B-Q8_0.gguf` (Q8_0): mean KLD" in report


def test_a_hub_without_the_file_ends_in_a_report(hub: Hub, tmp_path: Path) -> None:
    shutil.rmtree(hub.folder / "Qwen" / "Qwen3-0.6B-GGUF")
    code, report = verify_real(hub, tmp_path / "out")
    assert code == 1
    assert "a verified file: 1 problem\n" in report
    assert "Qwen/Qwen3-0.6B-GGUF" in report
