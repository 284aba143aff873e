"""The native library is tried in a child process first; a stand-in that dies takes its place here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_edge import load
from qwen_edge.config import GREEDY
from qwen_edge.errors import NativeCrashError
from qwen_edge.native import child, probe


class _Starts:
    """Stands in for start_child: a real child process that dies by a real signal for the kernels named."""

    def __init__(self, dying: set[str]) -> None:
        self.dying = dying
        self.asked: list[str] = []

    def __call__(self, module: str, args: list[str]) -> subprocess.Popen[str]:
        self.asked.append(args[1])
        if args[1] in self.dying:
            code = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
            return subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        return _REAL_START(module, args)


_REAL_START = child.start_child


def test_a_good_library_is_probed_once_and_stays_fast(
    tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = _Starts(set())
    monkeypatch.setattr(child, "start_child", starts)
    for _ in range(2):
        with load(tiny_bf16, n_ctx=256, n_threads=1) as model:
            assert model.info.settings["kernels"] == "fast"
    assert starts.asked == ["fast"]


def test_a_crash_falls_back_to_safe_kernels_with_one_warning(
    tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = _Starts({"fast"})
    monkeypatch.setattr(child, "start_child", starts)
    with pytest.warns(probe.NativeFallbackWarning, match=r"SIGSEGV.*qwen-edge setup") as caught:
        model = load(tiny_bf16, n_ctx=256, n_threads=1)
    assert len(caught) == 1
    with model, model.session() as session:
        assert model.info.settings["kernels"] == "safe"
        assert (
            session.send("What is the capital of Greece?", thinking="off", sampling=GREEDY).text == "Athens."
        )
    assert starts.asked == ["fast", "safe"]
    with pytest.warns(probe.NativeFallbackWarning):
        load(tiny_bf16, n_ctx=256, n_threads=1).close()
    assert starts.asked == ["fast", "safe"]  # remembered


def test_a_library_that_always_dies_is_an_error(tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "start_child", _Starts({"fast", "safe"}))
    with pytest.raises(NativeCrashError, match="SIGSEGV"):
        load(tiny_bf16, n_ctx=256, n_threads=1)


def test_an_unwritable_cache_costs_a_probe_and_nothing_else(
    tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_EDGE_CACHE", "/proc/nowhere")
    with load(tiny_bf16, n_ctx=256, n_threads=1) as model:
        assert model.info.settings["kernels"] == "fast"


def test_a_damaged_record_is_a_miss(tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tiny_bf16, n_ctx=256, n_threads=1).close()
    records = list((Path(os.environ["QWEN_EDGE_CACHE"]) / "probe").glob("*.json"))
    assert [json.loads(record.read_text())["kernels"] for record in records] == ["fast"]
    records[0].write_text('{"kernels":')
    starts = _Starts(set())
    monkeypatch.setattr(child, "start_child", starts)
    load(tiny_bf16, n_ctx=256, n_threads=1).close()
    assert starts.asked == ["fast"]


def test_a_child_maps_the_file_so_that_little_memory_is_no_crash(
    tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_edge.native import handles

    modes: list[str] = []

    class Watched(handles.NativeModel):
        def __init__(self, path: Path, *, load_mode: str = "read", safe_kernels: bool = False) -> None:
            modes.append(load_mode)
            super().__init__(path, load_mode=load_mode, safe_kernels=safe_kernels)

    monkeypatch.setattr(handles, "NativeModel", Watched)
    probe._run_as_child(str(tiny_bf16), "fast")
    assert modes == ["mmap"]
