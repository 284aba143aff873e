"""Which of several files of one model to take on this machine: a rule over measurements.

1. Quality first: a file is acceptable when its mean KLD against the reference is at most 0.1 nat and its most likely
   token is the reference's in at least 85% of the predictions.
2. The fastest decode among the acceptable ones wins.
3. Files whose decode is within the noise of the fastest (at least 5%) tie with it; of those the better quality wins.
   Below a KLD of 0.001 quality counts as equal, and the smaller file wins.

Source of the limits: published mean KLD of Qwen3-4B by bits a weight is 0.0015 at 8.5, 0.05 at 4.6 and 0.21 at 3.5;
4.6 bits are what most people run, at 3.5 answers get visibly worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwen_edge.bench.record import FileResult, Samples

MAX_MEAN_KLD = 0.1
MIN_SAME_TOP_SHARE = 0.85
MIN_TIE = 0.05
EQUAL_KLD = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One file with its cost and quality.

    Attributes:
        label: Quantization type, for figures: "Q4_K_M".
        mean_kld: Against the reference, in nats; 0.0 for the reference itself.
        same_top_share: Share of predictions whose most likely token is the reference's, 0 to 1.
        is_reference: Whether the others are compared with this one.
        cost: What was measured.
    """

    label: str
    mean_kld: float
    same_top_share: float
    is_reference: bool
    cost: FileResult

    @property
    def decode(self) -> Samples:
        """Decode speed in tokens/s."""
        return self.cost.decode_tokens_per_s

    @property
    def is_acceptable(self) -> bool:
        """Whether quality is good enough to choose by speed."""
        return self.mean_kld <= MAX_MEAN_KLD and self.same_top_share >= MIN_SAME_TOP_SHARE

    def to_dict(self) -> dict[str, Any]:
        """Return label and quality, JSON-ready; the cost is in the bench record."""
        return {
            "file": self.cost.file,
            "type": self.label,
            "reference": self.is_reference,
            "mean_kld": self.mean_kld,
            "same_top_share": self.same_top_share,
        }


@dataclass(frozen=True, slots=True)
class Advice:
    """The choice and the reason.

    Attributes:
        choice: The file to take.
        reason: Why, with the numbers; a clause that follows "Take FILE: ".
    """

    choice: Candidate
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return file and reason, JSON-ready."""
        return {"file": self.choice.cost.file, "type": self.choice.label, "reason": self.reason}


def choose(candidates: Sequence[Candidate]) -> Advice:
    """Return the file to take, by the rule above."""
    assert candidates, "Bug: nothing to choose from"
    acceptable = [candidate for candidate in candidates if candidate.is_acceptable]
    if not acceptable:
        best = min(candidates, key=lambda candidate: candidate.mean_kld)
        return Advice(
            best, f"none is within KLD {MAX_MEAN_KLD:g}, and it is the nearest with {best.mean_kld:.3f}"
        )
    fastest = max(acceptable, key=lambda candidate: candidate.decode.median)
    tied = [candidate for candidate in acceptable if _ties(candidate, fastest)]
    choice = min(tied, key=lambda candidate: (_quality(candidate), candidate.cost.size_bytes))
    return Advice(choice, _reason(choice, tied, candidates))


def _ties(candidate: Candidate, fastest: Candidate) -> bool:
    margin = max(MIN_TIE, candidate.decode.noise + fastest.decode.noise)
    return candidate.decode.median >= fastest.decode.median * (1 - margin)


def _reason(choice: Candidate, tied: Sequence[Candidate], candidates: Sequence[Candidate]) -> str:
    speed = f"{choice.decode.median:.0f} tokens/s"
    others = [candidate for candidate in tied if candidate is not choice]
    refused = [candidate for candidate in candidates if not candidate.is_acceptable]
    if others:
        listed = ", ".join(f"{other.label} ({other.decode.median:.0f})" for other in others)
        equal = all(_quality(other) == _quality(choice) for other in others)
        merit = "the smallest of equal quality" if equal else "the best quality"
        lead = f"decodes {speed}, a tie within the noise with {listed}, and of these it is {merit}"
    else:
        lead = f"the fastest decode{' of acceptable quality' if refused else ''}, {speed}"
    quality = "it is the reference" if choice.is_reference else _quality_text(choice)
    left_out = ", ".join(f"{candidate.label} ({_quality_text(candidate)})" for candidate in refused)
    return f"{lead} ({quality})" + (f"; left out for quality: {left_out}" if left_out else "")


def _quality_text(candidate: Candidate) -> str:
    return f"KLD {candidate.mean_kld:.4f}, same top token {candidate.same_top_share:.1%}"


def _quality(candidate: Candidate) -> float:
    return max(candidate.mean_kld, EQUAL_KLD)
