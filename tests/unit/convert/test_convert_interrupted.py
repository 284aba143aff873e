"""A conversion that is killed, or that the disk stops, leaves the old file or none."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_edge.convert import convert_checkpoint

# Says so when half is written, then waits to be killed.
STOP_HALF_WAY = """
import sys, time
from qwen_edge.convert import convert_checkpoint
def stop_half_way(done, total):
    if done >= total / 2:
        print("half", flush=True)
        time.sleep(60)
convert_checkpoint(sys.argv[1], sys.argv[2], progress=stop_half_way)
"""


def _parts(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


@pytest.mark.parametrize("old", [None, b"the old file"])
def test_killed_half_way(checkpoint: Path, tmp_path: Path, old: bytes | None) -> None:
    target = tmp_path / "out" / "m.gguf"
    target.parent.mkdir()
    if old is not None:
        target.write_bytes(old)
    with subprocess.Popen(
        [sys.executable, "-c", STOP_HALF_WAY, str(checkpoint), str(target)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        child.kill()
    assert (target.read_bytes() if target.exists() else None) == old
    assert len(_parts(target.parent)) == 1
    report = convert_checkpoint(checkpoint, target)
    assert report.size_bytes == target.stat().st_size
    assert not _parts(target.parent), "the next run clears what the killed one left"


@pytest.mark.parametrize("limit_bytes", [1000, 20_000])
def test_a_disk_that_fills_up_leaves_nothing(checkpoint: Path, tmp_path: Path, limit_bytes: int) -> None:
    target = tmp_path / "out" / "m.gguf"
    expected = convert_checkpoint(checkpoint, tmp_path / "whole.gguf").size_bytes
    assert expected > limit_bytes
    result = subprocess.run(
        [sys.executable, "-m", "qwen_edge", "convert", str(checkpoint), "-o", str(target)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert result.returncode == 1, result.stderr
    assert "files may not grow so large" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(target.parent.iterdir())
