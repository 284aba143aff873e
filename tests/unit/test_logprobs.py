from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import ConfigError
from qwen_edge.logprobs import token_logprob
from qwen_edge.model import Model

LOGITS = st.lists(st.floats(-1e4, 1e4, width=32) | st.just(-math.inf), min_size=1, max_size=40).filter(
    lambda values: max(values) > -math.inf
)


@given(values=LOGITS, alternatives=st.integers(0, 50), data=st.data())
def test_alternatives_are_the_most_likely_in_order(
    values: list[float], alternatives: int, data: st.DataObject
) -> None:
    token = data.draw(st.integers(0, len(values) - 1))
    logits = np.array(values, np.float32)
    entry = token_logprob(logits, token, alternatives, lambda index: bytes([index]))
    wide = logits.astype(np.float64)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    assert entry.token == token
    assert entry.logprob == pytest.approx(expected[token])
    order = sorted(range(len(values)), key=lambda index: (-logits[index], index))[:alternatives]
    assert [each.token for each in entry.top] == order
    assert [each.data for each in entry.top] == [bytes([index]) for index in order]
    np.testing.assert_allclose([each.logprob for each in entry.top], expected[order])


def test_each_token_has_an_entry() -> None:
    with Model(FakeEngine("<think>\nä\n</think>\n\nYes.")) as model, model.session() as session:
        reply = session.send("Hi", logprobs=2)
        assert reply.logprobs is not None
        assert len(reply.logprobs) == reply.stats.generated_tokens
        assert b"".join(entry.data for entry in reply.logprobs) == "<think>\nä\n</think>\n\nYes.".encode()
        assert [entry.text for entry in reply.logprobs[-3:]] == ["s", ".", ""]
        for entry in reply.logprobs:
            assert entry.logprob == pytest.approx(-math.log(model.info.n_vocab))
            assert [each.token for each in entry.top] == [0, 1]
        assert reply.logprobs[0].to_dict()["top_logprobs"][1]["bytes"] == [1]
        content = reply.to_openai()["choices"][0]["logprobs"]["content"]
        assert "".join(entry["token"] for entry in content).endswith("Yes.")


def test_off_costs_nothing_and_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine("Yes.")
    with Model(engine) as model, model.session() as session:
        reply = session.send("Hi", logprobs=0)
        assert reply.logprobs is not None
        assert {entry.top for entry in reply.logprobs} == {()}
        context, asked = engine.contexts[0], []
        real = context.logits
        monkeypatch.setattr(context, "logits", lambda: (asked.append(1), real())[1])
        assert session.send("Hi").logprobs is None
        assert len(asked) == 1, "once a reply, to see that they are numbers"


@pytest.mark.parametrize("value", [-1, 101, 1.0, True, "2"])
def test_the_number_of_alternatives_is_checked(value: object) -> None:
    with (
        Model(FakeEngine("Yes.")) as model,
        model.session() as session,
        pytest.raises(ConfigError, match="logprobs must be"),
    ):
        session.send("Hi", logprobs=value)  # type: ignore[arg-type]
