"""A bundle of a model that runs: made, carried elsewhere, checked and run there without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qwen_edge
from qwen_edge.bundle import BundleRequest, make_bundle, read_bundle
from qwen_edge.cli.main import main
from qwen_edge.config import GREEDY, LoadConfig
from qwen_edge.gguf_header import padded, read_header
from qwen_edge.native.builds import builds_folder
from qwen_edge.tuned import Settings, TuneRecord, Workload, forget, remember

PROMPT = "What is the capital of Greece?"


def has_namespaces() -> bool:
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def offline(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command where there is no network at all, not even this machine's own, and with a cache that is empty."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(qwen_edge.__file__).parents[1]),
        "QWEN_EDGE_CACHE": str(folder / "cache"),
        "QWEN_EDGE_NATIVE": str(builds_folder()),
    }
    return subprocess.run(
        ["unshare", "-rn", sys.executable, "-m", "qwen_edge", *args],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.skipif(not has_namespaces(), reason="no network namespace can be made here")
def test_a_bundle_is_carried_checked_and_run_offline(tiny_path: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    assert (
        main(["bundle", str(tiny_path), "-o", str(here), "--n-ctx", "512", "--threads", "1", "--measure"])
        == 0
    )
    shutil.copytree(here, there / "tiny")
    # Any speed is well: this machine has other work too.
    checked = offline(there, "verify-bundle", "tiny", "--tolerance", "1", "--format", "json")
    assert checked.returncode == 0, checked.stderr
    findings = {finding["group"]: finding for finding in json.loads(checked.stdout)["findings"]}
    assert {group: finding["status"] for group, finding in findings.items()} == dict.fromkeys(
        ("files", "build", "packages", "template", "memory", "speed"), "ok"
    )
    assert "tokens/s (expected" in findings["speed"]["text"]
    answered = offline(there, "run", "tiny", PROMPT, "--thinking", "off", "--temperature", "0")
    assert answered.returncode == 0, answered.stderr
    with qwen_edge.load(tiny_path, n_ctx=512, n_threads=1) as model, model.session() as session:
        assert answered.stdout.strip() == session.send(PROMPT, thinking="off", sampling=GREEDY).text


def test_one_changed_byte_of_a_tensor_is_named(
    tiny_bf16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "b"
    make_bundle(tiny_bf16, folder, BundleRequest(load=LoadConfig(n_ctx=512)))
    model = folder / read_bundle(folder).model.file
    header = read_header(model)
    tensor = next(each for each in header.tensors if each.name == "blk.1.ffn_up.weight")
    with model.open("rb+") as file:
        file.seek(padded(header.header_bytes) + tensor.offset + tensor.n_bytes - 1)
        [byte] = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    assert main(["verify-bundle", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert f"{model.name} is changed" in shown
    assert "tensor blk.1.ffn_up.weight, bytes" in shown


def test_loading_a_bundle_takes_its_settings(tiny_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    make_bundle(tiny_path, folder, BundleRequest(load=LoadConfig(n_ctx=384, n_threads=1)))
    with qwen_edge.load(folder, safe_kernels=False) as model:
        assert (model.info.settings["n_ctx"], model.info.settings["threads"]) == (384, 1)
    with qwen_edge.load(folder, n_ctx=256, n_threads=2, safe_kernels=False) as model:
        assert (model.info.settings["n_ctx"], model.info.settings["threads"]) == (256, 2)


def test_what_was_tuned_here_is_used_where_nothing_else_was_found(tiny_bf16: Path, tmp_path: Path) -> None:
    record = TuneRecord(
        settings=Settings(n_threads=1, n_batch=32),
        workload=Workload(prompt_tokens=16, answer_tokens=8, depth=0),
        speeds={name: {"prefill": 1.0, "decode": 1.0, "turn_s": 1.0} for name in ("default", "tuned")},
        seconds=1.0,
        measured_at=0.0,
    )
    remember(tiny_bf16, record)
    make_bundle(tiny_bf16, tmp_path / "b", BundleRequest(load=LoadConfig(n_ctx=256)))
    forget(tiny_bf16)
    with qwen_edge.load(tmp_path / "b", safe_kernels=False) as model:
        assert (model.info.settings["n_batch"], model.info.settings["threads"]) == (32, 1)
    with qwen_edge.load(tmp_path / "b", tuned=False, n_threads=1, safe_kernels=False) as model:
        assert model.info.settings["n_batch"] == 512
