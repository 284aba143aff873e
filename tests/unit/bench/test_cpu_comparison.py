"""Logits of two CPUs, made up: what their distance is, what is allowed, and where answers part."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen_edge.bench.cpu_comparison import (
    Bound,
    compare_records,
    distance,
    noise_bounds,
    other_tokens,
    verdict,
)
from qwen_edge.bench.cpu_record import CpuRecord, Greedy, Rows, Run, sampled_columns, top_of
from qwen_edge.errors import ConfigError, FormatError
from qwen_edge.logits import compare_logits

N_POSITIONS, N_VOCAB = 20, 300
SEEDS = st.integers(0, 2**32 - 1)
# Rows of logits take a while on a busy machine.
SOME = settings(max_examples=25, deadline=None)


def logits_of(seed: int, n_vocab: int = N_VOCAB) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(0.0, 3.0, (N_POSITIONS, n_vocab))
    return values.astype(np.float32)


def noisy(logits: NDArray[np.float32], part: float, seed: int = 1) -> NDArray[np.float32]:
    """Return logits that are apart by a part of their spread."""
    noise = np.random.default_rng(seed).normal(0.0, part * logits.std(), logits.shape)
    return (logits + noise).astype(np.float32)


def run_of(prefill: NDArray[np.float32], decode: NDArray[np.float32] | None = None, **changes: Any) -> Run:
    decode = prefill if decode is None else decode
    tokens, best = top_of(prefill[-6:])
    facts: dict[str, Any] = {
        "file": "m-Q8_0.gguf",
        "sha256": "ab" * 32,
        "engine": "llama.cpp",
        "kernels": "fast",
        "rounding": "8 bits in blocks of 32",
        "settings": {"threads": 1},
        "prompts": (tuple(range(N_POSITIONS)),),
        "prefill": Rows.from_logits(prefill),
        "decode": Rows.from_logits(decode),
        "greedy": Greedy(tokens=tokens[np.newaxis], logits=best[np.newaxis]),
    }
    return Run(**{**facts, **changes})


def record_of(*runs: Run, label: str = "here") -> CpuRecord:
    return CpuRecord(label=label, machine={"cpu": label}, runs=runs)


@SOME
@given(SEEDS)
def test_logits_are_equal_to_themselves(seed: int) -> None:
    rows = Rows.from_logits(logits_of(seed))
    found = distance(rows, rows)
    assert (found.rms, found.largest, found.max_kld, found.same_top_share) == (0, 0, 0, 1)
    assert found.is_equal
    assert verdict(found, Bound()) == "equal"


@SOME
@given(SEEDS, st.floats(1e-5, 0.5))
def test_the_distance_is_the_noise(seed: int, part: float) -> None:
    right = logits_of(seed)
    wrong = noisy(right, part)
    found = distance(Rows.from_logits(right), Rows.from_logits(wrong))
    assert found.rms == pytest.approx(part, rel=0.1)
    assert found.rms <= found.largest
    assert 0 <= found.mean_kld <= found.max_kld
    targets = np.zeros(N_POSITIONS, np.int64)
    full = compare_logits(right, wrong, targets)
    np.testing.assert_allclose(found.mean_kld, full.kld.mean(), rtol=1e-4, atol=1e-9)
    assert found.same_top_share == full.same_top.mean()


@SOME
@given(SEEDS, st.floats(0.01, 0.5))
def test_of_a_large_vocabulary_the_divergence_is_a_lower_limit(seed: int, part: float) -> None:
    right = logits_of(seed, 5000)
    wrong = noisy(right, part)
    found = distance(Rows.from_logits(right), Rows.from_logits(wrong))
    full = compare_logits(right, wrong, np.zeros(N_POSITIONS, np.int64)).kld
    assert 0 < found.mean_kld <= full.mean() * (1 + 1e-6)
    assert found.rms == pytest.approx(part, rel=0.1)


@SOME
@given(SEEDS, st.integers(0, N_POSITIONS - 1), st.integers(0, N_VOCAB - 1))
def test_one_wrong_logit_is_beyond_the_bound(seed: int, position: int, token: int) -> None:
    right = logits_of(seed)
    wrong = noisy(right, 0.005)
    allowed = Bound(rms=0.02, largest=0.2)
    assert verdict(distance(Rows.from_logits(right), Rows.from_logits(wrong)), allowed) == "within"
    wrong[position, token] += 2.0
    assert verdict(distance(Rows.from_logits(right), Rows.from_logits(wrong)), allowed) == "beyond"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("n_vocab", [N_VOCAB, 5000])
def test_what_is_no_number_is_beyond_every_bound(value: float, n_vocab: int) -> None:
    right = logits_of(0, n_vocab)
    wrong = right.copy()
    wrong[3, 7] = value
    found = distance(Rows.from_logits(right), Rows.from_logits(wrong))
    assert verdict(found, Bound(rms=1e9, largest=1e9)) == "beyond"


@SOME
@given(SEEDS, st.integers(1, 12))
def test_the_likeliest_tokens_come_best_first(seed: int, count: int) -> None:
    logits = logits_of(seed).round(0)  # many are equal
    tokens, best = top_of(logits, count)
    for row, found, values in zip(logits, tokens, best, strict=True):
        assert found[0] == row.argmax()
        np.testing.assert_array_equal(row[found], values)
        np.testing.assert_array_equal(values, np.sort(row)[::-1][:count])


@pytest.mark.parametrize("n_vocab", [1, 256, 512, 4096, 151_936])
def test_the_sample_is_even_and_each_token_is_in_it_once(n_vocab: int) -> None:
    columns = sampled_columns(n_vocab)
    assert len(columns) == min(n_vocab, 512)
    assert columns[-1] < n_vocab
    steps = np.diff(columns)
    assert len(steps) == 0 or (steps.min() > 0 and steps.max() - steps.min() <= 1)


def test_the_bound_is_twice_the_noise_of_the_reference() -> None:
    right = logits_of(0)
    reference = record_of(
        run_of(right, noisy(right, 0.004)), run_of(noisy(right, 0.01, seed=2), kernels="plain")
    )
    (bound,) = noise_bounds(reference).values()
    fast, plain = reference.runs
    apart = max(
        distance(one, other).rms
        for one in (fast.prefill, fast.decode)
        for other in (plain.prefill, plain.decode)
    )
    assert bound.rms == pytest.approx(2 * apart)


def test_files_with_the_same_rounding_share_a_bound_and_others_have_their_own() -> None:
    right = logits_of(0)
    reference = record_of(
        run_of(right, noisy(right, 0.004)),
        run_of(right, file="n-Q4_0.gguf"),
        run_of(right, file="m-F32.gguf", rounding="float32"),
    )
    bounds = noise_bounds(reference)
    assert bounds["8 bits in blocks of 32"].rms == pytest.approx(0.008, rel=0.1)
    assert bounds["float32"] == Bound()


def test_the_distance_from_exact_arithmetic_widens_the_bound() -> None:
    right = logits_of(0)
    reference = record_of(run_of(noisy(right, 0.02)))
    exact = record_of(run_of(right))
    assert noise_bounds(reference)["8 bits in blocks of 32"] == Bound()
    assert noise_bounds(reference, exact)["8 bits in blocks of 32"].rms == pytest.approx(
        0.02 * 2**0.5, rel=0.1
    )
    (found,) = compare_records(reference, record_of(run_of(noisy(right, 0.02, seed=3))), exact)
    assert not found.is_finding
    for way in found.ways:
        assert way.exact_rms == pytest.approx((0.02, 0.02), rel=0.1)


def test_a_damaged_way_is_named() -> None:
    right = logits_of(0)
    reference = record_of(run_of(right, noisy(right, 0.005)))
    other = record_of(run_of(noisy(right, 0.005, seed=5), noisy(right, 0.3, seed=6)), label="there")
    (found,) = compare_records(reference, other)
    assert {way.way: way.verdict for way in found.ways} == {"prefill": "within", "decode": "beyond"}
    assert found.is_finding
    assert found.to_dict()["is_finding"]


def answers(*steps: tuple[tuple[int, float], ...]) -> Greedy:
    tokens = np.array([[[token for token, _ in step] for step in steps]], np.int32)
    return Greedy(
        tokens=tokens, logits=np.array([[[logit for _, logit in step] for step in steps]], np.float32)
    )


def test_where_answers_part_and_whether_that_was_a_near_tie() -> None:
    right = answers(((5, 9.0), (6, 1.0)), ((7, 4.0), (8, 3.5)), ((9, 2.0), (1, 1.0)))
    other = answers(((5, 9.0), (6, 1.1)), ((8, 3.8), (7, 3.7)), ((1, 2.0), (9, 1.0)))
    (tie,) = other_tokens(right, other, limit=0.6)
    assert (tie.step, tie.tokens, tie.margin, tie.is_near_tie) == (1, (7, 8), 0.5, True)
    (clear,) = other_tokens(right, other, limit=0.4)
    assert not clear.is_near_tie
    assert other_tokens(right, right, limit=0.0) == []


def test_a_token_far_down_is_no_near_tie() -> None:
    right = answers(((5, 9.0), (6, 8.9)))
    (found,) = other_tokens(right, answers(((99, 9.0), (5, 8.0))), limit=100.0)
    assert not found.is_near_tie


def test_a_clear_choice_that_falls_otherwise_is_a_finding() -> None:
    run = run_of(logits_of(0))
    greedy = Greedy(tokens=run.greedy.tokens[:, :, ::-1], logits=run.greedy.logits[:, :, ::-1])
    (found,) = compare_records(record_of(run), record_of(dataclasses.replace(run, greedy=greedy)))
    assert {way.verdict for way in found.ways} == {"equal"}
    assert found.is_finding


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "cd" * 32}, "other weights"),
        ({"prompts": ((1, 2, 3),)}, "other prompts"),
        ({"file": "another.gguf"}, "no file in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], words: str) -> None:
    run = run_of(logits_of(0))
    with pytest.raises(ConfigError, match=words):
        compare_records(record_of(run), record_of(dataclasses.replace(run, **changes)))


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    right = logits_of(0)
    made = CpuRecord(
        label="x",
        machine={"cpu": "c", "native": {"cpu_module": "armv8.2_2"}},
        runs=(run_of(right), run_of(noisy(right, 0.1), kernels="plain")),
        failures=("a.gguf, fast kernels: the process ended with signal SIGILL",),
    )
    made.save(tmp_path / "r.npz")
    found = CpuRecord.load(tmp_path / "r.npz")
    assert (found.label, found.machine, found.failures) == (made.label, made.machine, made.failures)
    for each in compare_records(made, found):
        assert {way.verdict for way in each.ways} == {"equal"}
    assert found.runs[0].prompts == made.runs[0].prompts
    np.testing.assert_array_equal(found.runs[1].greedy.logits, made.runs[1].greedy.logits)


@SOME
@given(st.binary(max_size=200))
def test_what_is_no_record_is_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("records") / "r.npz"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"r\.npz"):
        CpuRecord.load(path)


def test_a_record_without_a_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    record_of(run_of(logits_of(0))).save(path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "0.decode.sampled"}
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(FormatError, match="damaged"):
        CpuRecord.load(path)
    with pytest.raises(FormatError, match="is not there"):
        CpuRecord.load(tmp_path / "none.npz")
