"""kill -9 at any moment of a conversion or quantization: the old file or none, never a half one; the next run is right.

QWEN_EDGE_KILLS sets how many moments are tried for each kind of run, 6 by default. The moments are spread over the
measured duration of the work, by a fixed seed.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from qwen_edge.convert import convert_checkpoint, export_onnx
from qwen_edge.convert.onnx_precision import OnnxPrecision
from qwen_edge.quantize import quantize_file
from tests import synthetic
from tests.faults.running import ROOT

KILLS = int(os.environ.get("QWEN_EDGE_KILLS", "6"))
# 13 M weights in rows that all types divide.
SHAPE = replace(synthetic.TINY, layers=3, hidden=512, ffn=1536, heads=8, kv_heads=4, head_dim=64, vocab=4096)
# The run as a process: says when the work begins, and where Python writes makes it slow enough to be struck.
PROGRAM = """
import sys, time
kind, source, target = sys.argv[1:]
begun = False
def progress(done, total):
    global begun
    if not begun:
        print("begun", flush=True)
        begun = True
    time.sleep(0.004)
from tests.faults.test_kill import WORK
WORK[kind](source, target, progress)
"""

Progress = Callable[[int, int], None]


def _convert(source: str | Path, target: str | Path, progress: Progress | None = None) -> None:
    convert_checkpoint(source, target, progress=progress)


def _export(source: str | Path, target: str | Path, progress: Progress | None = None) -> None:
    export_onnx(source, target, replace=True, progress=progress)


def _quantize(source: str | Path, target: str | Path, progress: Progress | None = None) -> None:
    quantize_file(source, target, "Q4_K_M", n_threads=1, overwrite=True, progress=progress)


def _quantize_folder(source: str | Path, target: str | Path, progress: Progress | None = None) -> None:
    export_onnx(source, target, precision=OnnxPrecision(weights="int4"), replace=True, progress=progress)


WORK = {
    "convert to GGUF": _convert,
    "convert to ONNX": _export,
    "quantize GGUF": _quantize,
    "quantize ONNX": _quantize_folder,
}


@dataclass
class Run:
    """A run that has begun its work."""

    process: subprocess.Popen[str]
    began_s: float

    @classmethod
    def start(cls, kind: str, source: Path, target: Path) -> Run:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, kind, str(source), str(target)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        return cls(process, time.monotonic())

    def kill(self) -> list[psutil.Process]:
        """Kill it, and return the children that it had."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self.process.kill()
        self.process.communicate()
        return children


def digest(path: Path) -> str:
    """Return a digest of a file, or of the files of a folder; "" where nothing is."""
    if not path.exists():
        return ""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    content = hashlib.sha256()
    for file in files:
        content.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return content.hexdigest()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each kind of run starts from."""
    folder = tmp_path_factory.mktemp("sources")
    checkpoint = synthetic.write_checkpoint(folder / "checkpoint", SHAPE)
    _convert(checkpoint, folder / "bf16.gguf")
    _export(checkpoint, folder / "onnx")
    return {
        "convert to GGUF": checkpoint,
        "convert to ONNX": checkpoint,
        "quantize GGUF": folder / "bf16.gguf",
        "quantize ONNX": folder / "onnx",
    }


def put_old(target: Path, is_folder: bool) -> None:
    """Put an older file or folder under the name."""
    if is_folder:
        target.mkdir()
        (target / "model.onnx").write_bytes(b"the old graph")
    else:
        target.write_bytes(b"the old file")


@pytest.mark.parametrize("kind", WORK)
def test_killed_at_any_moment(
    kind: str, sources: dict[str, Path], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    source, is_folder = sources[kind], kind.endswith("ONNX")
    name = "m" if is_folder else "m.gguf"
    undisturbed = tmp_path / "undisturbed" / name
    run = Run.start(kind, source, undisturbed)
    while not undisturbed.exists():
        assert run.process.poll() is None
        time.sleep(0.005)
    duration_s = time.monotonic() - run.began_s
    run.process.communicate()
    whole = digest(undisturbed)
    generator = random.Random(kind)
    moments_s = [generator.uniform(0, 1.02 * duration_s) for _ in range(KILLS)]
    record_property("duration_s", round(duration_s, 3))
    record_property("moments_s", [round(moment, 3) for moment in moments_s])
    seen = {"old": 0, "none": 0, "whole": 0}
    for index, moment_s in enumerate(moments_s):
        target = tmp_path / f"{index}" / name
        target.parent.mkdir()
        if index % 2:
            put_old(target, is_folder)
        old = digest(target)
        run = Run.start(kind, source, target)
        time.sleep(max(0.0, run.began_s + moment_s - time.monotonic()))
        for child in run.kill():
            child.wait(timeout=10)  # it notices that its parent is gone
        now = digest(target)
        assert now in (old, whole, ""), f"half a file after {moment_s:.3f} s"
        seen["whole" if now == whole else "old" if now else "none"] += 1
        others = {path.name for path in target.parent.iterdir()} - {name, f"{name}.manifest.json"}
        assert all(part.startswith(f".{name}.") and part.endswith(".part") for part in others)
        WORK[kind](source, target)
        assert digest(target) == whole, f"another file after a kill at {moment_s:.3f} s"
        assert not list(target.parent.glob(".*.part"))
    record_property("seen", seen)
