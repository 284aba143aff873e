"""Which type is recommended; speeds come from a table, as if they had been measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest

from qwen_edge import device
from qwen_edge.catalog import MODELS, find_model
from qwen_edge.catalog_types import Shape
from qwen_edge.cli.main import main
from qwen_edge.cli.options import parse_size
from qwen_edge.errors import ConfigError, UnsupportedError
from qwen_edge.native import library
from qwen_edge.tune import recommending
from qwen_edge.tune.recommending import Limits, fastest, recommend
from qwen_edge.tuned import Settings, TuneRecord, Workload

DECODE = {"BF16": 10.0, "Q8_0": 20.0, "Q6_K": 18.0, "Q5_K_M": 24.0, "Q4_K_M": 36.0, "Q4_0": 30.0}
MODEL = MODELS["qwen3-0.6b"]


class Bench:
    """Stands for writing and tuning synthetic weights; counts the files."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, path: Path, shape: Shape, type_name: str, *, architecture: str) -> int:
        assert architecture == "qwen3"
        self.written.append(type_name)
        path.write_bytes(b"")
        return 0

    def tune(self, path: Path, workload: Workload, **_: Any) -> TuneRecord:
        speeds = {"prefill": 200.0, "decode": DECODE[self.written[-1]], "turn_s": 1.0}
        return TuneRecord(
            settings=Settings(n_threads=2),
            workload=workload,
            speeds={"default": speeds, "tuned": speeds},
            seconds=1.0,
            measured_at=0.0,
        )


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    stand_in = Bench()
    monkeypatch.setattr(recommending, "write_trial_model", stand_in.write)
    monkeypatch.setattr(recommending, "tune_file", stand_in.tune)
    monkeypatch.setattr(library, "library_fingerprint", lambda: "one")
    monkeypatch.setattr(recommending, "check_free_space", lambda *_: None)
    free = device.AvailableMemory(
        available_bytes=8 << 30, total_bytes=16 << 30, limited_by="system", reason="as the test says"
    )
    monkeypatch.setattr(device, "available_memory_bytes", lambda: free)
    return stand_in


def test_of_what_suits_the_closest_to_the_original_comes_first() -> None:
    found = recommend(MODEL, Limits(min_decode=19))
    assert [each.type_name for each in found if not each.misses] == ["Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0"]
    assert [each.type_name for each in found if each.misses] == ["BF16", "Q6_K"]
    assert found[-1].misses == ("18.0 tokens/s of decode",)
    best = fastest(found)
    assert best is not None
    assert best.type_name == "Q4_K_M"


def test_what_does_not_fit_is_not_measured(bench: Bench) -> None:
    found = recommend(MODEL, Limits(max_memory_bytes=1_300_000_000, max_file_bytes=500_000_000))
    assert bench.written == [each.type_name for each in found if each.record is not None]
    assert all(each.memory.total_bytes <= 1_300_000_000 for each in found if not each.misses)
    assert any("GB of memory" in each.misses[0] for each in found if each.misses)


def test_a_longer_context_needs_more() -> None:
    short, long = (
        {each.type_name: each.memory.total_bytes for each in recommend(MODEL, Limits(n_ctx=n_ctx))}
        for n_ctx in (1024, 8192)
    )
    assert all(long[name] - short[name] >= 7168 * 112 * 1024 for name in short)


def test_what_was_measured_is_remembered(bench: Bench) -> None:
    first = recommend(MODEL, Limits(), types=["q4_0", "q4-0"])
    assert bench.written == ["Q4_0"]
    assert recommend(MODEL, Limits(min_decode=40), types=["Q4_0"])[0].record == first[0].record
    assert bench.written == ["Q4_0"]
    recommend(MODEL, Limits(), types=["Q4_0"], again=True)
    recommend(MODEL, Limits(), types=["Q4_0"], workload=Workload(depth=0))
    assert bench.written == ["Q4_0"] * 3


def test_a_small_context_gets_a_workload_that_fits() -> None:
    [found] = recommend(MODEL, Limits(n_ctx=256), types=["Q4_0"])
    assert found.record is not None
    assert found.record.workload.n_ctx <= 256


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match="handles"):
        recommend(MODEL, Limits(n_ctx=10**6))
    with pytest.raises(ConfigError, match="unknown quantization type"):
        recommend(MODEL, Limits(), types=["Q9"])
    with pytest.raises(UnsupportedError, match="finished file only"):
        recommend(find_model("gemma-3-1b"), Limits(n_ctx=512))


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("1GB", 10**9), ("512 MB", 512 * 10**6), ("1.5GiB", 3 << 29), ("700m", 7 * 10**8), ("123456", 123456)],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1TB", "1 G B", "lots"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no size"):
        parse_size(text)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "qwen3:0.6b", "--min-decode", "25"]) == 0
    captured = capsys.readouterr()
    assert "Take qwen3-0.6b@Q4_K_M" in captured.out
    assert "qwen-edge pull qwen3-0.6b@Q4_K_M" in captured.err
    assert main(["recommend", "qwen3-0.6b", "--min-decode", "99"]) == 1
    assert "None suits. The fastest is Q4_K_M, with 36.0 tokens/s" in capsys.readouterr().out
    assert main(["recommend", "qwen3-0.6b", "--max-memory", "100MB"]) == 1
    assert " needs least, " in capsys.readouterr().out
    assert main(["recommend", "qwen3-0.6b", "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["candidates"][0]["type"] == "BF16"
    assert printed["candidates"][0]["settings"] == asdict(Settings(n_threads=2))
