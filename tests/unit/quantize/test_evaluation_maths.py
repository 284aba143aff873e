from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qwen_edge.errors import ConfigError
from qwen_edge.logits import compare_logits
from qwen_edge.quantize.evaluation import bootstrap_stderr, evaluate_kld


def kl_by_definition(reference: list[float], candidate: list[float]) -> float:
    """KL(P || Q) with Python's own sums, in the form sum p (log p - log q)."""

    def log_probabilities(logits: list[float]) -> list[float]:
        top = max(logits)
        log_sum = top + math.log(math.fsum(math.exp(x - top) for x in logits))
        return [x - log_sum for x in logits]

    pairs = zip(log_probabilities(reference), log_probabilities(candidate), strict=True)
    return math.fsum(math.exp(p) * (p - q) for p, q in pairs)


logit_pairs = st.tuples(st.integers(1, 40), st.integers(2, 30)).flatmap(
    lambda shape: hnp.arrays(np.float32, (2, *shape), elements=st.floats(-60, 60, width=32))
)


@settings(deadline=None)
@given(logit_pairs)
def test_kld_is_the_definition(pair: np.ndarray) -> None:
    reference, candidate = pair
    targets = np.arange(len(reference), dtype=np.int64) % reference.shape[1]
    result = compare_logits(reference, candidate, targets)
    expected = [kl_by_definition(p.tolist(), q.tolist()) for p, q in zip(reference, candidate, strict=True)]
    np.testing.assert_allclose(result.kld, expected, rtol=1e-9, atol=1e-12)
    assert (result.kld >= 0).all()
    assert result.same_top.tolist() == [
        int(np.argmax(p)) == int(np.argmax(q)) for p, q in zip(reference, candidate, strict=True)
    ]


def test_kld_known_value() -> None:
    # P = (1/2, 1/2), Q = (1/4, 3/4): KL = 1/2 log 2 + 1/2 log 2/3.
    reference = np.array([[0.0, 0.0]], np.float32)
    candidate = np.log(np.array([[0.25, 0.75]])).astype(np.float32)
    result = compare_logits(reference, candidate, np.array([1]))
    assert result.kld[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)
    assert result.log_p_reference[0] == pytest.approx(math.log(0.5))
    assert result.log_p_candidate[0] == pytest.approx(math.log(0.75))


def test_ruled_out_tokens_add_nothing() -> None:
    reference = np.array([[0.0, -np.inf, 0.0]], np.float32)
    candidate = np.array([[0.0, -np.inf, 1.0]], np.float32)
    with np.errstate(invalid="ignore"):
        kld = compare_logits(reference, candidate, np.array([0])).kld
    assert kld[0] == pytest.approx(kl_by_definition([0.0, 0.0], [0.0, 1.0]))


def test_equal_logits_give_exactly_zero() -> None:
    logits = np.random.default_rng(0).normal(0, 8, (50, 1000)).astype(np.float32)
    result = compare_logits(logits, logits, np.zeros(50, np.int64))
    assert result.kld.max() == 0.0
    assert result.same_top.all()


def test_bootstrap_is_the_error_of_the_mean() -> None:
    means = np.random.default_rng(1).normal(1.0, 0.3, 200)
    expected = means.std() / math.sqrt(len(means))
    assert bootstrap_stderr(means) == pytest.approx(expected, rel=0.06)
    assert bootstrap_stderr(means) == bootstrap_stderr(means)
    assert bootstrap_stderr(means[:1]) is None
    assert bootstrap_stderr(np.ones(5)) == 0.0


def test_protocol_scores_the_second_half_of_each_window(table_engine: Callable[..., Any]) -> None:
    text = "".join(chr(ord("a") + i % 7) for i in range(70))
    reference, candidate = table_engine(seed=1), table_engine(seed=2)
    report = evaluate_kld(reference, candidate, text, n_ctx=16)
    assert (report.chunks, report.tokens_scored) == (4, 4 * 7)
    assert [len(window) for window in reference.scored] == [16] * 4
    tokens = reference.tokenize(text)
    klds, nll = [], []
    for start in range(0, 64, 16):
        for position in range(start + 8, start + 15):
            p, q = reference.table[tokens[position]], candidate.table[tokens[position]]
            klds.append(kl_by_definition(p.tolist(), q.tolist()))
            nll.append(math.log(sum(math.exp(x) for x in q.tolist())) - float(q[tokens[position + 1]]))
    assert report.mean_kld == pytest.approx(np.mean(klds))
    assert report.max_kld == pytest.approx(max(klds))
    assert report.kld_999 == pytest.approx(np.quantile(klds, 0.999))
    assert report.ppl_candidate == pytest.approx(math.exp(np.mean(nll)))
    assert not reference.is_closed, "an engine that was handed in stays open"


def test_model_against_itself(table_engine: Callable[..., Any]) -> None:
    report = evaluate_kld(table_engine(seed=1), table_engine(seed=1), "abc" * 20, n_ctx=16, chunks=2)
    assert (report.mean_kld, report.same_top_share, report.rms_delta_p) == (0.0, 1.0, 0.0)
    assert report.ppl_reference == report.ppl_candidate
    assert report.chunks == 2
    assert report.to_dict()["mean_kld_stderr"] == 0.0


def test_progress_counts_chunks(table_engine: Callable[..., Any]) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_kld(
        table_engine(1), table_engine(2), "abc" * 20, n_ctx=16, progress=lambda *state: seen.append(state)
    )
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_what_cannot_be_compared_is_refused(table_engine: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="the text has 6 tokens"):
        evaluate_kld(table_engine(1), table_engine(2), "abcabc", n_ctx=16)
    with pytest.raises(ConfigError, match="different vocabularies"):
        evaluate_kld(table_engine(1), table_engine(2, n_vocab=300), "abc" * 20, n_ctx=16)
    with pytest.raises(ConfigError, match="n_ctx must be"):
        evaluate_kld(table_engine(1), table_engine(2), "abc" * 20, n_ctx=1)
