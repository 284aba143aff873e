from __future__ import annotations

import pytest

from qwen_edge.bench.workload import Workload, measure
from qwen_edge.config import LoadConfig
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import ConfigError, ContextOverflowError
from qwen_edge.model import Model


def run(workload: Workload, repetitions: int = 3, n_ctx: int | None = None):
    engine = FakeEngine("Ends at once.", config=LoadConfig(n_ctx=n_ctx or workload.rounded_n_ctx, n_batch=32))
    with Model(engine) as model, model.session() as session:
        return measure(model, session, workload, repetitions), session


@pytest.mark.parametrize("depth", [0, 1, 100])
def test_each_repetition_reads_and_writes_exactly_what_was_asked(depth):
    workload = Workload(prompt_tokens=70, generate_tokens=40, depth=depth)
    repetitions, session = run(workload)
    assert len(repetitions) == 3
    for repetition in repetitions:
        assert repetition.prefill.cached_tokens == depth
        assert repetition.decode.cached_tokens == max(0, depth - 1)  # evaluated with the new one
        assert repetition.prefill.prompt_tokens == depth + 70
        assert repetition.prefill.generated_tokens == 1
        assert repetition.decode.prompt_tokens == depth + 1
        assert repetition.decode.generated_tokens == 40  # although the reply ends much sooner
    assert session.messages == []


def test_the_needed_context_is_enough_and_one_less_is_not():
    workload = Workload(prompt_tokens=70, generate_tokens=40, depth=10)
    assert workload.needed_n_ctx == 81
    assert workload.rounded_n_ctx == 256
    run(workload, n_ctx=81)
    with pytest.raises(ContextOverflowError):
        run(workload, n_ctx=80)
    longer_reply = Workload(prompt_tokens=5, generate_tokens=40, depth=10)
    run(longer_reply, n_ctx=longer_reply.needed_n_ctx)


@pytest.mark.parametrize("field", ["prompt_tokens", "generate_tokens", "depth"])
def test_numbers_that_measure_nothing_are_refused(field):
    with pytest.raises(ConfigError, match=field):
        Workload(**{field: -1})


def test_progress_counts_the_warm_up():
    seen = []
    engine = FakeEngine("x")
    with Model(engine) as model, model.session() as session:
        measure(
            model, session, Workload(prompt_tokens=3, generate_tokens=2), 2, lambda *step: seen.append(step)
        )
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
