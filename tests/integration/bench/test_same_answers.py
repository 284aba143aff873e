"""The tiny model says the same in every way; and a way that does not is found out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen_edge.bench import same_answers
from qwen_edge.bench.answer_comparison import Comparison, compare
from qwen_edge.bench.same_answers import WAYS, Bench, in_new_sessions

N_PROMPTS = 3


@pytest.fixture(scope="module")
def comparisons(tiny_bf16: Path) -> dict[str, Comparison]:
    before = os.environ.get("QWEN_EDGE_CACHE")
    told: list[str] = []
    found = same_answers.measure(tiny_bf16, 1, N_PROMPTS, told.append)
    assert os.environ.get("QWEN_EDGE_CACHE") == before
    assert told[1:] == [each.way for each in found] == [name for name, _, _ in WAYS]
    return {each.way: each for each in found}


@pytest.mark.parametrize("way", [name for name, _, _ in WAYS])
def test_the_tiny_model_says_the_same(comparisons: dict[str, Comparison], way: str) -> None:
    assert (comparisons[way].n_equal, comparisons[way].n_prompts) == (N_PROMPTS, N_PROMPTS)
    # Products of matrices of another shape differ in their last digits only.
    assert comparisons[way].largest_change < 0.05


@pytest.mark.parametrize(
    "way", ["saved, restored in a model loaded again", "branch", "on_overflow set, nothing dropped"]
)
def test_what_copies_or_does_nothing_is_equal_to_the_bit(
    comparisons: dict[str, Comparison], way: str
) -> None:
    assert comparisons[way].largest_change == 0.0


def test_each_way_saves_what_it_is_for(comparisons: dict[str, Comparison]) -> None:
    evaluated = {way: each.evaluated_tokens for way, each in comparisons.items()}
    alone = evaluated["KV reuse over turns"]
    assert evaluated["prefix in memory: one session, other questions"] < alone - (N_PROMPTS - 1) * 200
    for way in ("prefix from disk", "prefix from disk, model loaded again"):
        assert evaluated[way] < alone - N_PROMPTS * 200
    for way in ("saved, restored in a model loaded again", "saved alone, restored beside others", "branch"):
        assert evaluated[way] == alone


def test_another_answer_is_told_with_place_and_gap(tiny_bf16: Path, tmp_path: Path) -> None:
    """A quantized KV cache is a change that the tiny model notices."""
    bench = Bench(
        file=tiny_bf16,
        n_threads=1,
        conversations=(("What is 12 + 30?", "Tell me a story of a king."),),
        folder=tmp_path,
    )
    same = in_new_sessions()(bench)
    coarse = in_new_sessions(kv_type="q4_0", flash_attention="on")(bench)
    comparison = compare("coarse", "plain", same, coarse)
    (difference,) = comparison.differences
    assert difference.texts[0] != difference.texts[1]
    assert comparison.largest_change > 0
    assert comparison.largest_gap is not None
    assert 0 < comparison.largest_gap < 5


@pytest.mark.parametrize("output_format", ["human", "json"])
def test_the_command(tiny_bf16: Path, output_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_answers, "WAYS", WAYS[:2])
    arguments = [str(tiny_bf16), "--threads", "1", "--prompts", "1", "--format", output_format]
    result = CliRunner().invoke(same_answers.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    if output_format == "human":
        assert "1/1" in result.stdout
        return
    document = json.loads(result.stdout)
    assert document["schema"] == "qwen-edge/same-answers/1"
    assert len(document["prompts"]) == 1
    assert [way["n_equal"] for way in document["ways"]] == [1, 1]
