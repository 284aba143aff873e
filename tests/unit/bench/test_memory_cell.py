"""What a measured process does with a batch that takes long."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

import pytest

from qwen_edge.bench import memory_cell
from qwen_edge.engines.base import Context
from qwen_edge.errors import CancelledError


class SlowContext:
    """A context whose batch lasts until it is cancelled."""

    def __init__(self, *, takes_effect: bool) -> None:
        self._takes_effect = takes_effect
        self._cancelled = threading.Event()
        self.is_cleared = False

    def append(self, tokens: Sequence[int]) -> None:
        assert self._cancelled.wait(10)
        if self._takes_effect:
            raise CancelledError("cancelled during evaluation")

    def cancel(self) -> None:
        self._cancelled.set()

    def clear_cancel(self) -> None:
        self.is_cleared = True


@pytest.mark.parametrize("takes_effect", [True, False])
def test_a_batch_that_takes_long_is_stopped_and_what_follows_is_not(
    takes_effect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation that comes when the batch is done would end the next one."""
    monkeypatch.setattr(memory_cell, "_BATCH_S", 0.01)
    context: Any = SlowContext(takes_effect=takes_effect)
    memory_cell._begin(cast(Context, context), [1, 2, 3])
    assert context.is_cleared
