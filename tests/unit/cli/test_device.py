"""`qwen-edge device` as a person and as a script see it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from unit.device import trees

from qwen_edge import device
from qwen_edge.cli.main import main
from qwen_edge.device import Bandwidth, Machine, ThreadBandwidth
from qwen_edge.device.linux import probe_linux

Capture = pytest.CaptureFixture[str]

MEASURED = Bandwidth(
    by_threads=(
        ThreadBandwidth(n_threads=1, bytes_per_s=1e10),
        ThreadBandwidth(n_threads=6, bytes_per_s=4.25e10),
    ),
    buffer_bytes=256 << 20,
    last_level_bytes=12 << 20,
    measured_at=0,
)


def show(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Capture, *options: str
) -> tuple[str, str]:
    monkeypatch.setattr(device, "probe_machine", lambda: machine)
    monkeypatch.setattr(
        device, "measure_bandwidth", lambda machine, *, again: replace(machine, bandwidth=MEASURED)
    )
    assert main(["device", *options]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def rows(text: str) -> dict[str, str]:
    return {line[:14].strip(): line[14:] for line in text.splitlines() if line[14:]}


def test_a_laptop_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    out, err = show(probe_linux(trees.hybrid_laptop(tmp_path)), monkeypatch, capsys)
    found = rows(out)
    assert found["cores"] == "2 performance with 4 threads up to 4.70 GHz + 4 efficiency up to 3.50 GHz"
    assert found["usable"] == "6 cores"
    assert found["swap"] == "3.07 GB of 4.10 GB free, 4.10 GB of it compressed memory"
    assert found["reads memory"] == "10.0 GB/s with 1 thread, 42.5 GB/s with 6 threads"
    assert found["power"] == "from the battery; battery at 57%, discharging"
    assert found["heat"] == "x86_pkg_temp 71 °C, passive from 95"
    assert found["throttling"] == "not slowed now, 13 times since boot"
    assert "4 CPUs: powersave, 2.10 GHz now, held at 2.80 GHz" in out
    assert "memory nodes" in out.partition("Not told by this machine")[2]
    assert "two seconds" in err


def test_what_is_remembered_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    machine = replace(
        probe_linux(trees.raspberry_pi(tmp_path)), bandwidth=replace(MEASURED, buffer_bytes=1 << 20)
    )
    out, err = show(machine, monkeypatch, capsys)
    assert "which the last-level cache may hold: perhaps too high" in out
    assert not err
    assert (
        rows(out)["throttling"]
        == "slowed now: under-voltage, throttled, since boot: under-voltage, throttled"
    )
    out, err = show(machine, monkeypatch, capsys, "--measure")
    assert "perhaps too high" not in out
    assert err


def test_policies_that_are_alike_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    trees.amd_desktop(tmp_path)
    for cpu in range(16):
        khz = (2_000_000 + cpu, 400_000, 5_000_000, 5_000_000)
        trees.write_tree(tmp_path, trees.policy(cpu, str(cpu), "schedutil", khz))
    out, _ = show(probe_linux(tmp_path), monkeypatch, capsys)
    assert [line[14:] for line in out.splitlines() if line.startswith("frequency")] == [
        "16 CPUs: schedutil, 2.00 GHz now"
    ]
    assert rows(out)["memory nodes"].startswith("2:")
    assert "from the" not in out, "the battery of a mouse says nothing of the machine"


def test_narrow_terminals_get_whole_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("qwen_edge.cli.device.columns_of", lambda stream: 60)
    for build in (trees.hybrid_laptop, trees.bare_virtual_machine, trees.limited_container):
        out, _ = show(probe_linux(build(tmp_path / build.__name__)), monkeypatch, capsys)
        long = [line for line in out.splitlines() if len(line) > 60]
        assert all(len(line[14:].split()) == 1 for line in long), "only a path may be longer"


def test_json_has_values_and_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    out, _ = show(probe_linux(trees.bare_virtual_machine(tmp_path)), monkeypatch, capsys, "--format", "json")
    document = json.loads(out)
    assert document["battery"] is None
    assert document["unknown"]["battery"] == "no battery: /sys/class/power_supply is empty"
    assert document["cores"]["groups"][0]["n_cores"] == 2
    assert document["bandwidth"]["by_threads"][1]["n_threads"] == 6
    assert "bandwidth" not in document["unknown"]


def test_this_machine(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = device.probe_machine()
    assert device.known(machine.cores) is not None or device.usable_cores() >= 1
    out, _ = show(machine, monkeypatch, capsys)
    assert machine.cpu_name in out
