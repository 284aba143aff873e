"""How reading is measured and remembered; figures of this machine are nobody's business here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge import device, paths
from qwen_edge.device import Bandwidth, ThreadBandwidth, Unknown, bandwidth, probing

MIB = 1 << 20
GIVEN = Bandwidth(
    by_threads=(
        ThreadBandwidth(n_threads=1, bytes_per_s=1e10),
        ThreadBandwidth(n_threads=2, bytes_per_s=1.5e10),
    ),
    buffer_bytes=512 * MIB,
    last_level_bytes=32 * MIB,
    measured_at=1.7e9,
)


def test_the_buffer_is_longer_than_the_cache_and_leaves_memory_free() -> None:
    assert bandwidth.buffer_size(None, 1 << 40) == 256 * MIB
    assert bandwidth.buffer_size(2 * MIB, 1 << 40) == 256 * MIB
    assert bandwidth.buffer_size(480 * MIB, 1 << 40) == 960 * MIB
    assert bandwidth.buffer_size(4096 * MIB, 1 << 40) == 2048 * MIB
    assert bandwidth.buffer_size(2 * MIB, 400 * MIB) == 100 * MIB
    assert bandwidth.buffer_size(2 * MIB, 0) == 4 * MIB


@settings(deadline=None)
@given(st.integers(1, 500))
def test_thread_counts_end_with_all_cores(n_cores: int) -> None:
    counts = bandwidth.thread_counts(n_cores)
    assert counts[0] == 1
    assert counts[-1] == n_cores
    assert list(counts) == sorted(set(counts))


def test_every_number_of_threads_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    read = bandwidth._read

    def spy(parts: list[np.ndarray], window_s: float) -> float:
        assert all((part == 1).all() for part in parts), "pages that were not written are no memory"
        seen.append([len(part) for part in parts])
        return read(parts, window_s)

    monkeypatch.setattr(bandwidth, "_read", spy)
    found = bandwidth.measure(3, buffer_bytes=12 * MIB, last_level_bytes=None, reading_s=0.02, filling_s=10)
    assert [point.n_threads for point in found.by_threads] == [1, 2, 3]
    assert all(point.bytes_per_s > 0 for point in found.by_threads)
    assert {sum(parts) * 8 for parts in seen} == {12 * MIB}
    assert found.best in found.by_threads


def test_a_host_that_gives_memory_slowly_shortens_the_buffer() -> None:
    found = bandwidth.measure(
        1, buffer_bytes=64 * MIB, last_level_bytes=32 * MIB, reading_s=0.01, filling_s=0
    )
    assert found.buffer_bytes == 4 * MIB
    assert found.may_be_cached


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("n_bytes", [8, 9 * MIB + 40])
def test_every_pass_reads_the_whole_buffer(
    monkeypatch: pytest.MonkeyPatch, n_bytes: int, n_threads: int
) -> None:
    read: list[int] = []

    class Part(np.ndarray):
        def sum(self) -> None:  # type: ignore[override]
            assert (self == 1).all()
            read.append(self.nbytes)

    ones = np.ones
    monkeypatch.setattr(np, "ones", lambda count, kind: ones(count, kind).view(Part))
    assert bandwidth.measure_passes(n_bytes, n_threads, passes=2) > 0
    assert sum(read) == 3 * n_bytes
    assert max(read) <= 4 * MIB


def test_the_median_pass_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 50.0, 52.0, 53.0, 57.0])  # the first pass is not timed; then 2, 1 and 4 seconds
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(ticks))
    assert bandwidth.measure_passes(800, 1, passes=3) == 400


def test_figures_are_remembered(tmp_path: Path) -> None:
    path = bandwidth.record_path(tmp_path / "device", ["cpu", "2"])
    assert isinstance(bandwidth.remembered(path), Unknown)
    bandwidth.remember(path, GIVEN)
    assert bandwidth.remembered(path) == GIVEN
    assert bandwidth.record_path(tmp_path / "device", ["cpu", "4"]) != path


def test_what_cannot_be_written_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "device").write_text("a file")
    bandwidth.remember(tmp_path / "device" / "x.json", GIVEN)
    assert (tmp_path / "device").read_text() == "a file"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"by_threads": []}', '{"by_threads": 3}', "\ud800"]
    + [
        json.dumps({"by_threads": points, "buffer_bytes": 1, "last_level_bytes": None, "measured_at": 0})
        for points in ([], [{"n_threads": 0, "bytes_per_s": 1}], [{"n_threads": 1, "bytes_per_s": -1}], [1])
    ]
    + ['{"by_threads": [{"n_threads": 1, "bytes_per_s": NaN}], "buffer_bytes": 1, "last_level_bytes": 1, "measured_at": 0}'],
)  # fmt: skip
def test_damaged_records_count_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert bandwidth.remembered(path) == bandwidth.NOT_MEASURED


def test_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "cache_root", lambda: tmp_path)
    asked: list[int] = []

    def measure(n_cores: int, **options: object) -> Bandwidth:
        asked.append(n_cores)
        return replace(GIVEN, measured_at=float(len(asked)))

    monkeypatch.setattr(probing.reading, "measure", measure)
    before = device.probe_machine()
    assert isinstance(before.bandwidth, Unknown)
    first = device.measure_bandwidth(before)
    assert device.probe_machine().bandwidth == first.bandwidth
    assert device.measure_bandwidth(device.probe_machine()).bandwidth == first.bandwidth
    again = device.measure_bandwidth(first, again=True)
    assert known_time(again) == 2
    assert asked == [device.usable_cores()] * 2


def known_time(machine: device.Machine) -> float:
    assert isinstance(machine.bandwidth, Bandwidth)
    return machine.bandwidth.measured_at
