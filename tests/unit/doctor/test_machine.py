"""Checks of Python, CPU and packages."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from unit.device import arm_trees, trees

from qwen_edge import device
from qwen_edge.device import Bandwidth, ThreadBandwidth
from qwen_edge.device.linux import probe_android, probe_linux
from qwen_edge.doctor import machine
from qwen_edge.errors import NativeError


def installed(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)


@pytest.fixture
def requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "numpy>=1.26",
        'llama-cpp-python==0.3.36; extra == "llama"',
        'onnxruntime>=1.23; extra == "onnx"',
        'tokenizers>=0.20; extra == "onnx"',
        'gguf>=0.17; extra == "convert"',
        "pytest>=8.2; extra == 'dev'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda _: lines)


def test_python_and_cpu_are_named() -> None:
    assert machine.check_python().found.startswith("Python 3.")
    assert "usable" in machine.check_cpu().found


def test_what_slows_the_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laptop = probe_linux(trees.hybrid_laptop(tmp_path / "laptop"))
    monkeypatch.setattr(device, "probe_machine", lambda: laptop)
    (check,) = machine.check_state()
    assert check.status == "note"
    assert check.found == (
        "2 performance and 4 efficiency cores; slowed now: limited to 2.8 GHz; on battery, 57%"
    )
    board = probe_linux(trees.raspberry_pi(tmp_path / "board"))
    monkeypatch.setattr(device, "probe_machine", lambda: board)
    (check,) = machine.check_state()
    assert check.found == "slowed now: under-voltage, throttled"
    assert check.advice.startswith("Power it with the supply made for the board")
    assert "Cool it" in check.advice


def test_what_slowed_a_board_before_is_told_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = probe_linux(arm_trees.raspberry_pi_4(tmp_path / "board", throttled="80000"))
    monkeypatch.setattr(device, "probe_machine", lambda: board)
    (check,) = machine.check_state()
    assert (check.status, check.cost) == ("note", "")
    assert check.found == "slowed since boot: soft temperature limit"
    assert check.advice.startswith("Cool it: ")


def test_waiting_for_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = probe_android(arm_trees.open_phone(tmp_path), "")
    monkeypatch.setattr(device, "probe_machine", lambda: phone)
    (check,) = machine.check_state()
    assert "programs waited for memory in 14% of the last ten seconds" in check.found
    assert "slowed now: cpufreq-cpu4, limited to 1.7 GHz" in check.found


def test_a_machine_that_tells_nothing_gets_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = probe_linux(trees.bare_virtual_machine(tmp_path))
    monkeypatch.setattr(device, "probe_machine", lambda: bare)
    assert list(machine.check_state()) == []
    measured = Bandwidth(
        by_threads=(ThreadBandwidth(n_threads=2, bytes_per_s=1.74e10),),
        buffer_bytes=1,
        last_level_bytes=None,
        measured_at=0,
    )
    monkeypatch.setattr(device, "probe_machine", lambda: replace(bare, bandwidth=measured))
    (check,) = machine.check_state()
    assert (check.status, check.found) == ("ok", "2 threads read 17.4 GB/s from memory")


def test_a_narrow_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.maxsize", 2**31 - 1)
    assert machine.check_python().status == "warning"


@pytest.mark.usefixtures("requirements")
def test_extras_are_found_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"onnxruntime": "1.23", "gguf": "0.17"})
    version, missing = machine.check_extras()
    assert version.found.endswith("with the extras convert")
    assert missing.found == "not installed: onnx, for models exported to ONNX"
    assert missing.advice == 'pip install "qwen-edge[onnx]"'


def test_without_metadata_nothing_is_said_of_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    (version,) = machine.check_extras()
    assert version.status == "ok"


def test_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"onnxruntime": "1.23", "tokenizers": "0.20"})
    assert machine.check_onnx().status == "ok"
    installed(monkeypatch, {"onnxruntime": "1.23"})
    assert machine.check_onnx().found.startswith("tokenizers is missing")


def test_on_android_onnx_runtime_is_a_package_of_termux(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {})
    monkeypatch.setattr(machine, "on_android", lambda: True)
    assert machine.check_onnx().advice.startswith("pkg install python-onnxruntime")


def test_without_compiler_and_library_it_is_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: object) -> None:
        raise NativeError("no C++ compiler found")

    installed(monkeypatch, {})
    monkeypatch.setattr(machine, "chosen_build", lambda: None)
    monkeypatch.setattr(machine, "detect_compiler", none)
    check = machine.check_onnx()
    assert check.found == ("ONNX Runtime is not installed; it is the way to run models without a compiler")
    assert check.advice == 'pip install "qwen-edge[onnx]"'
