"""How far two CPUs are apart, and whether rounding explains it.

The yardstick is the noise between valid ways on one CPU. The reference's record holds up to four of them for each file: fast
and plain kernels, the prompt in one call and token by token. They differ because kernels sum in another order, and what is
then a hair different is rounded again, matrix for matrix, which makes it larger: on tiny-qwen3 up to 0.7% of the spread of
the logits where inputs are rounded to 8 bits in blocks of 32, up to 1.3% in blocks of 256. How inputs are rounded decides
it, so files with the same rounding share one yardstick, the largest of all their pairs of ways. AMX and the same CPU without
it are up to 1.2% apart. The bound is twice the yardstick.

Ways on one CPU begin with the same values and may round nearly all of them alike, in a model of few layers all. Two CPUs need
not: at most they have no rounding error in common, and are then sqrt(2) times as far apart as one is from exact arithmetic.
Where that distance is known (the same weights dequantized to F32), this is the bound, if it is the larger one. Wrong kernels
differ by 30% and more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qwen_edge.bench.cpu_record import CpuRecord, Greedy, Rows, Run
from qwen_edge.errors import ConfigError

Verdict = Literal["equal", "within", "beyond"]
WAYS = ("prefill", "decode")

_HEADROOM = 2.0
_NOTHING_IN_COMMON = 2.0**0.5
# Sums of a thousand products in float32, in another order, through some layers; where no way of the reference differs.
_LEAST_BOUND = 1e-4
# Of logits that are all alike, which no model has.
_LEAST_SPREAD = 1e-30
# Of probability: a smaller rest is the rounding of the sums.
_LEAST_REST = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far the logits of n positions are from a reference's.

    Attributes:
        rms: Root mean square of the difference over an even sample of the vocabulary, as a part of the spread.
        largest: Largest difference of one logit, likewise; the likeliest tokens are looked at too.
        mean_kld: Mean of KL(reference || other) of the next token, in nats. Tokens that a record does not keep count as
            one, so that of a large vocabulary it is a lower limit.
        max_kld: The largest of one position.
        same_top_share: Positions, 0 to 1, with the same likeliest token.
        spread: Standard deviation of the reference's logits over the vocabulary, root mean square over positions.
        is_equal: Whether all logits that are kept are equal to the bit.
    """

    rms: float
    largest: float
    mean_kld: float
    max_kld: float
    same_top_share: float
    spread: float
    is_equal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What two valid ways may be apart: Distance.rms and Distance.largest."""

    rms: float = _LEAST_BOUND
    largest: float = 10 * _LEAST_BOUND


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherToken:
    """Where a greedy answer parts from the reference's.

    Attributes:
        prompt: Number of the prompt, from 0.
        step: Of the first token that differs, from 0.
        tokens: The reference's and the other's.
        margin: How far the reference's token is above the other's, in logits of the reference.
        is_near_tie: Whether two logits that close may change places within the bound.
    """

    prompt: int
    step: int
    tokens: tuple[int, int]
    margin: float
    is_near_tie: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WayComparison:
    """One way: the prompt in one call ("prefill") or token by token ("decode").

    Attributes:
        way: Which.
        distance: From the reference's, of the same way.
        verdict: "equal" to the bit, "within" the bound, or "beyond" it: a finding.
        exact_rms: Distance of the reference and of the other from exact arithmetic; None where that is not recorded.
    """

    way: str
    distance: Distance
    verdict: Verdict
    exact_rms: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileComparison:
    """One file with one kind of kernels, on another CPU.

    Attributes:
        file: Its name.
        kernels: "fast" or "plain".
        cpu: Label of the other record.
        rounding: Of the matrices' inputs.
        bound: What is allowed.
        ways: Prefill and decode.
        other_tokens: Where greedy answers part; () where all are equal.
        n_prompts: Greedy answers.
    """

    file: str
    kernels: str
    cpu: str
    rounding: str
    bound: Bound
    ways: tuple[WayComparison, ...]
    other_tokens: tuple[OtherToken, ...]
    n_prompts: int

    @property
    def is_finding(self) -> bool:
        """Whether rounding does not explain a difference of it."""
        return any(each.verdict == "beyond" for each in self.ways) or any(
            not each.is_near_tie for each in self.other_tokens
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-ready."""
        return {**asdict(self), "is_finding": self.is_finding}


def compare_records(
    reference: CpuRecord, other: CpuRecord, exact: CpuRecord | None = None
) -> list[FileComparison]:
    """Compare what two CPUs computed, for all that both have.

    Args:
        reference: The CPU that counts as right; the bounds are its own noise.
        other: Another.
        exact: The same weights dequantized to F32, under the same names.

    Raises:
        ConfigError: They have nothing in common; or what has one name are other weights, or was asked other prompts.
    """
    bounds = noise_bounds(reference, exact)
    found = {(run.file, run.kernels): run for run in other.runs}
    ideal = {run.file: run for run in exact.runs} if exact else {}
    comparisons = [
        compare_runs(
            run, found[run.file, run.kernels], other.label, bounds[run.rounding], ideal.get(run.file)
        )
        for run in reference.runs
        if (run.file, run.kernels) in found
    ]
    if not comparisons:
        raise ConfigError(
            f"{reference.label} and {other.label} have no file in common",
            hint="Files are matched by name: record the same ones on both.",
        )
    return comparisons


def noise_bounds(record: CpuRecord, exact: CpuRecord | None = None) -> Mapping[str, Bound]:
    """Return what ways may be apart, for each rounding of a record.

    Args:
        record: Of the CPU that counts as right.
        exact: The same weights in F32, where they are recorded.
    """
    bounds: dict[str, Bound] = {}
    for rounding in {run.rounding for run in record.runs}:
        apart = [
            (_HEADROOM, each)
            for file in {run.file for run in record.runs if run.rounding == rounding}
            for each in _between_ways(run for run in record.runs if run.file == file)
        ]
        apart += [
            (_NOTHING_IN_COMMON, distance(getattr(ideal, way), getattr(run, way)))
            for run in record.runs
            for ideal in (exact.runs if exact else ())
            if run.rounding == rounding and run.file == ideal.file
            for way in WAYS
        ]
        bounds[rounding] = Bound(
            rms=max([_LEAST_BOUND, *(factor * each.rms for factor, each in apart)]),
            largest=max([10 * _LEAST_BOUND, *(factor * each.largest for factor, each in apart)]),
        )
    return bounds


def _between_ways(runs: Iterable[Run]) -> list[Distance]:
    ways = [rows for run in runs for rows in (run.prefill, run.decode)]
    return [distance(one, other) for one, other in itertools.combinations(ways, 2)]


def compare_runs(reference: Run, other: Run, cpu: str, bound: Bound, exact: Run | None) -> FileComparison:
    """Compare one file's runs with the same kind of kernels on two CPUs."""
    if reference.sha256 != other.sha256:
        raise ConfigError(
            f"{reference.file} of {cpu} has other weights ({other.sha256[:12]}, not {reference.sha256[:12]})",
            hint="Copy the file: what is quantized on another CPU may differ in a last digit.",
        )
    if reference.prompts != other.prompts or (exact and exact.prompts != reference.prompts):
        raise ConfigError(
            f"{reference.file} of {cpu} was asked other prompts, or its text became other tokens",
            hint="Record both with the same prompts.",
        )
    ways = []
    for way in WAYS:
        right, measured = getattr(reference, way), getattr(other, way)
        apart = distance(right, measured)
        ideal = getattr(exact, way) if exact else None
        ways.append(
            WayComparison(
                way=way,
                distance=apart,
                verdict=verdict(apart, bound),
                exact_rms=(distance(ideal, right).rms, distance(ideal, measured).rms) if ideal else None,
            )
        )
    limit = bound.largest * max(each.distance.spread for each in ways)
    return FileComparison(
        file=reference.file,
        kernels=reference.kernels,
        cpu=cpu,
        rounding=reference.rounding,
        bound=bound,
        ways=tuple(ways),
        other_tokens=tuple(other_tokens(reference.greedy, other.greedy, limit)),
        n_prompts=len(reference.greedy.tokens),
    )


def verdict(apart: Distance, bound: Bound) -> Verdict:
    """Return what a distance is called; one that is no number is beyond every bound."""
    if apart.is_equal:
        return "equal"
    # A value that is none and not in the sample makes the divergence none.
    is_within = apart.rms <= bound.rms and apart.largest <= bound.largest and np.isfinite(apart.mean_kld)
    return "within" if is_within else "beyond"


def other_tokens(reference: Greedy, other: Greedy, limit: float) -> list[OtherToken]:
    """Return the first token that differs of each answer.

    Args:
        reference: Answers of the reference.
        other: To the same prompts.
        limit: Logits that are no further apart may change places.
    """
    found = []
    for prompt, (tokens, candidates) in enumerate(zip(reference.tokens, other.tokens, strict=True)):
        steps = np.nonzero(tokens[:, 0] != candidates[:, 0])[0]
        if len(steps) == 0:
            continue
        step = int(steps[0])
        taken = int(candidates[step, 0])
        places = np.nonzero(tokens[step] == taken)[0]
        # A token that is not among the reference's likeliest is below the last of them.
        place = int(places[0]) if len(places) else -1
        margin = float(reference.logits[prompt, step, 0] - reference.logits[prompt, step, place])
        found.append(
            OtherToken(
                prompt=prompt,
                step=step,
                tokens=(int(tokens[step, 0]), taken),
                margin=margin,
                is_near_tie=bool(len(places)) and margin <= limit,
            )
        )
    return found


@np.errstate(invalid="ignore")
def distance(reference: Rows, other: Rows) -> Distance:
    """Compare the logits of the same n positions, n at least 1. Values that are no numbers give figures that are none."""
    apart = other.sampled.astype(np.float64) - reference.sampled
    spread = float(np.sqrt(reference.sampled.var(axis=1, dtype=np.float64).mean())) or _LEAST_SPREAD
    kld, largest = np.array([_compare_position(reference, other, index) for index in range(len(apart))]).T
    return Distance(
        rms=float(np.sqrt((apart**2).mean())) / spread,
        largest=float(largest.max()) / spread,
        mean_kld=float(kld.mean()),
        max_kld=float(kld.max()),
        same_top_share=float((reference.top_tokens[:, 0] == other.top_tokens[:, 0]).mean()),
        spread=spread,
        is_equal=bool((apart == 0).all() and (reference.log_totals == other.log_totals).all())
        and np.array_equal(reference.top_tokens, other.top_tokens)
        and np.array_equal(reference.top_logits, other.top_logits),
    )


def _compare_position(reference: Rows, other: Rows, index: int) -> tuple[float, float]:
    """Return KLD and largest difference of one position, over the tokens that both keep and, for KLD, their rest."""
    tokens, logits = _kept(reference, index)
    other_kept, other_logits = _kept(other, index)
    _, here, there = np.intersect1d(tokens, other_kept, assume_unique=True, return_indices=True)
    log_p = logits[here] - reference.log_totals[index]
    log_q = other_logits[there] - other.log_totals[index]
    p, q = np.exp(log_p), np.exp(log_q)
    kld = float((p * (log_p - log_q)).sum())
    rest_p, rest_q = 1.0 - float(p.sum()), 1.0 - float(q.sum())
    if min(rest_p, rest_q) > _LEAST_REST:
        kld += rest_p * float(np.log(rest_p / rest_q))
    # Not max(): of a number and none it may take the number.
    return float(np.maximum(kld, 0.0)), float(np.abs(logits[here] - other_logits[there]).max())


def _kept(rows: Rows, index: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the tokens whose logits are kept of a position, each once, ascending, and the logits."""
    tokens = np.concatenate([rows.columns, rows.top_tokens[index]])
    logits = np.concatenate([rows.sampled[index], rows.top_logits[index]]).astype(np.float64)
    unique, first = np.unique(tokens, return_index=True)
    return unique, logits[first]
