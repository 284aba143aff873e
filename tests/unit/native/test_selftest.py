"""What the self-test makes of a library that dies, hangs, lies or is right; stand-ins take the children's place."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from qwen_edge.native import child, selftest, speed_trial
from qwen_edge.native.selftest import AGREEMENT_BOUND, SelfTest, run_selftest
from qwen_edge.native.speed_trial import Contestant, measure_speeds

# As a child of selftest: logits of a fixed pattern, scaled or broken for the kernels and types that FAULTS names.
LIBRARY = """
import json, os, signal, sys, time
import numpy as np
folder, kernels, *files = sys.argv[1:]
FAULTS = {faults!r}
if FAULTS.get("load") == "raises":
    raise SystemExit("OSError: libllama.so: cannot open")
if FAULTS.get("load") == "dies":
    os.kill(os.getpid(), signal.SIGILL)
print(json.dumps({{"system_info": "CPU : AVX2 = 1 |"}}), flush=True)
print("a line of no concern", flush=True)
for file in files:
    name = os.path.basename(file).removesuffix(".gguf")
    fault = FAULTS.get(kernels + " " + name)
    logits = np.random.default_rng(1).standard_normal((1, 25, 64)).astype(np.float32).repeat(2, axis=0)
    if fault == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "hangs":
        time.sleep(60)
    if fault == "raises":
        raise SystemExit("GGUFError: no such type")
    if fault == "nan":
        logits[1, 3, 5] = np.nan
    if fault == "near":
        logits[1] *= 1.02
    if fault == "far":
        logits[0] = logits[0][:, ::-1]
    np.save(os.path.join(folder, kernels + "-" + name + ".npy"), logits)
    print(json.dumps({{"done": file, "is_finite": bool(np.isfinite(logits).all())}}), flush=True)
"""

FILES = {name: Path(f"{name}.gguf") for name in ("Q4_0", "Q8_0", "F32")}


def popen(code: str, args: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_with(
    faults: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch, *, timeout_s: float = 60.0
) -> SelfTest:
    def start(module: str, args: list[str], *, build: object = None) -> subprocess.Popen[str]:
        assert module == "qwen_edge.native.selftest"
        return popen(LIBRARY.format(faults=faults), args)

    monkeypatch.setattr(child, "start_child", start)
    return run_selftest(FILES, folder, timeout_s=timeout_s)


def test_a_right_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = run_with({"fast Q4_0": "near"}, tmp_path, monkeypatch)
    assert test.system_info == "CPU : AVX2 = 1 |"
    assert test.failures("fast") == test.failures("safe") == ()
    by_name = {(outcome.kernels, outcome.type_name): outcome.difference for outcome in test.outcomes}
    assert by_name["fast", "Q4_0"] == pytest.approx(0.02, rel=0.01)
    assert by_name["fast", "F32"] == 0


def test_a_crash_is_named_and_the_other_types_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = run_with({"fast Q4_0": "dies", "fast F32": "dies"}, tmp_path, monkeypatch)
    assert [(outcome.type_name, outcome.crash) for outcome in test.failures("fast")] == [
        ("Q4_0", "signal SIGSEGV"),
        ("F32", "signal SIGSEGV"),
    ]
    assert test.failures("safe") == ()


def test_wrong_numbers_and_none_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, nan = run_with({"fast Q8_0": "nan", "fast Q4_0": "far"}, tmp_path, monkeypatch).failures("fast")
    assert (wrong.type_name, nan.type_name) == ("Q4_0", "Q8_0")
    assert wrong.difference is not None
    assert wrong.difference > AGREEMENT_BOUND
    assert (nan.is_finite, nan.difference) == (False, None)


def test_plain_kernels_that_differ_from_themselves_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain,) = run_with({"safe Q4_0": "far"}, tmp_path, monkeypatch).failures("safe")
    assert plain.type_name == "Q4_0"


@pytest.mark.parametrize(
    ("how", "crash", "error"),
    [("dies", "signal SIGILL", ""), ("raises", "", "OSError: libllama.so: cannot open")],
)
def test_a_library_that_does_not_load_is_tried_once_for_each_kind(
    how: str, crash: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = run_with({"load": how}, tmp_path, monkeypatch)
    assert test.system_info == ""
    assert len(test.failures("safe")) == len(test.failures("fast")) == len(FILES)
    assert {(outcome.crash, outcome.error) for outcome in test.outcomes} == {(crash, error)}


def test_an_error_of_the_library_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (failed,) = run_with({"fast Q8_0": "raises"}, tmp_path, monkeypatch).failures("fast")
    assert (failed.type_name, failed.crash, failed.error) == ("Q8_0", "", "GGUFError: no such type")


def test_a_child_that_hangs_is_ended_and_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = run_with({"safe Q8_0": "hangs"}, tmp_path, monkeypatch, timeout_s=3)
    assert {outcome.type_name for outcome in test.failures("safe")} == {"Q8_0", "F32"}
    assert all(outcome.crash.startswith("no answer in") for outcome in test.failures("safe"))
    assert len(test.failures("fast")) == len(FILES)


def test_speeds_are_medians_of_turns_and_who_dies_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def start(module: str, args: list[str], *, build: object = None) -> subprocess.Popen[str]:
        assert module == "qwen_edge.native.speed_trial"
        order.append(args[1])
        if args[1] == "safe":
            return popen("import os; os.kill(os.getpid(), 11)", [])
        speed = {1: 100, 3: 900, 4: 300}[len(order)]
        assert json.loads(args[2])["n_threads"] == 2
        turn = {"prefill_tokens_per_s": speed, "decode_tokens_per_s": 7, "system_info": "CPU"}
        return popen(f"print({json.dumps(turn)!r})", [])

    monkeypatch.setattr(child, "start_child", start)
    contestants = [
        Contestant(name="a", build=None),
        Contestant(name="b", build=None, kernels="safe"),
    ]
    speeds = measure_speeds(contestants, Path("m.gguf"), budget_s=60, n_threads=2)
    assert order == ["fast", "safe", "fast", "fast"]
    assert speeds == {
        "a": speed_trial.Speed(prefill_tokens_per_s=300, decode_tokens_per_s=7, n_turns=3),
    }


def test_without_time_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> subprocess.Popen[str]:
        raise AssertionError("no child may be started")

    monkeypatch.setattr(child, "start_child", start)
    assert measure_speeds([Contestant(name="a", build=None)], Path("m.gguf"), budget_s=0) == {}


def test_a_turn_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "start_child", lambda *_, **__: popen("import time; time.sleep(60)", []))
    assert measure_speeds([Contestant(name="a", build=None)], Path("m.gguf"), budget_s=0.5) == {}


def test_why_a_turn_measured_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    endings = ["import os; os.kill(os.getpid(), 4)", "raise SystemExit('no such kernel')", "pass"]
    monkeypatch.setattr(child, "start_child", lambda *_, **__: popen(endings.pop(0), []))
    trial = speed_trial.Trial(n_threads=1)
    reasons = [speed_trial.run_turn(Path("m.gguf"), trial, timeout_s=30) for _ in range(3)]
    assert reasons == [(None, "signal SIGILL"), (None, "no such kernel"), (None, "it ended with exit code 0")]


def test_the_shape_has_rows_of_whole_blocks_of_256() -> None:
    for shape in (selftest.SELFTEST_SHAPE, speed_trial.SPEED_SHAPE):
        assert all(width % 256 == 0 for width in (shape.hidden_size, shape.ffn_size, shape.q_size))


def test_a_child_dies_with_an_interrupted_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    process = popen("import time; time.sleep(60)", [])
    real, calls = process.communicate, []

    def interrupted(timeout: float | None = None) -> tuple[str, str]:
        calls.append(timeout)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real()

    monkeypatch.setattr(process, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child.finish(process, 5)
    assert process.returncode == -9


def test_lines_of_a_child_that_are_no_objects_are_left_out() -> None:
    assert child.json_lines('{"a": 1}\nnoise\n[1]\n{"cut of') == [{"a": 1}]
    assert child.last_line("a\n  b \n\n") == "b"
    assert child.last_line("") == ""
