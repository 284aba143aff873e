from __future__ import annotations

import signal

import pytest

from qwen_edge.native import library


def test_an_interrupt_waits_for_the_end_of_a_native_call() -> None:
    steps = []

    def interrupted() -> None:
        with library.interrupt_deferred():
            signal.raise_signal(signal.SIGINT)
            steps.append("inside, after the signal")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["inside, after the signal"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_that_handles_sigint_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with library.interrupt_deferred():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]
