from __future__ import annotations

import gc
import sys

from qwen_edge.engines.fake import FakeEngine
from qwen_edge.model import Model

_MESSAGES_A_SESSION = 2


def _allocated_blocks_after(model: Model, engine: FakeEngine, n_messages: int) -> int:
    for _ in range(n_messages // _MESSAGES_A_SESSION):
        with model.session() as session:
            for _ in range(_MESSAGES_A_SESSION):
                assert session.send("Hi", logprobs=0).text == "Hm."
        engine.contexts.clear()  # the fake keeps them for tests to look at
    gc.collect()
    return sys.getallocatedblocks()


def test_ten_thousand_messages_leave_memory_as_it_was() -> None:
    engine = FakeEngine("Hm.")
    with Model(engine) as model:
        before = _allocated_blocks_after(model, engine, 1_000)
        after = _allocated_blocks_after(model, engine, 9_000)
    # One object left behind by each session would be 4,500.
    assert after - before < 1_000
