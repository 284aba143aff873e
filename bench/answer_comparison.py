"""Where two runs of one prompt part, and how close the choice was there.

A difference of log-probabilities in one run is the difference of its logits: what both are normalised by cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwen_edge.types import TokenLogprob

Steps = Sequence[TokenLogprob]


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said to one prompt.

    Attributes:
        steps: Each token with its likeliest alternatives.
        evaluated_tokens: Of the prompt; the others were there already.
    """

    steps: tuple[TokenLogprob, ...]
    evaluated_tokens: int

    def __add__(self, later: Answer) -> Answer:
        """Return this answer and one of a later turn as one."""
        return Answer(self.steps + later.steps, self.evaluated_tokens + later.evaluated_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where two answers part.

    Attributes:
        prompt: Number of the prompt, from 0.
        position: Of the first token that differs, from 0.
        texts: The reference's token and the other's, as text; "" where one has ended.
        gaps: How far each run's own token is above the other's, in logits of that run; None where the other's token is
            not among the alternatives that the run tells.
    """

    prompt: int
    position: int
    texts: tuple[str, str]
    gaps: tuple[float | None, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What became of all prompts in one way.

    Attributes:
        way: What was done.
        against: What was not done: the reference.
        n_prompts: Prompts.
        differences: Where answers part; the others are equal token for token.
        largest_change: Of the log-probability of a chosen token, before answers part. 0.0: equal to the bit.
        evaluated_tokens: Of all prompts, in this way: what it saved is missing from them.
    """

    way: str
    against: str
    n_prompts: int
    differences: tuple[Difference, ...]
    largest_change: float
    evaluated_tokens: int

    @property
    def n_equal(self) -> int:
        """Prompts with the same answer, token for token."""
        return self.n_prompts - len(self.differences)

    @property
    def largest_gap(self) -> float | None:
        """The largest known gap of all differences; None where there is none."""
        return max((gap for each in self.differences for gap in each.gaps if gap is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-ready."""
        return {**asdict(self), "n_equal": self.n_equal, "largest_gap": self.largest_gap}


def compare(way: str, against: str, expected: Sequence[Answer], found: Sequence[Answer]) -> Comparison:
    """Compare the answers to the same prompts.

    Args:
        way: What was done.
        against: What the expected answers are of.
        expected: The reference's answers, in the order of the prompts.
        found: The other's.
    """
    pairs = list(zip(expected, found, strict=True))
    differences = [
        first_difference(prompt, one.steps, other.steps) for prompt, (one, other) in enumerate(pairs)
    ]
    return Comparison(
        way=way,
        against=against,
        n_prompts=len(pairs),
        differences=tuple(each for each in differences if each is not None),
        largest_change=max((largest_change(one.steps, other.steps) for one, other in pairs), default=0.0),
        evaluated_tokens=sum(answer.evaluated_tokens for answer in found),
    )


def first_difference(prompt: int, expected: Steps, found: Steps) -> Difference | None:
    """Return where two answers to a prompt part; None where they do not."""
    position = _n_equal_tokens(expected, found)
    if position == len(expected) == len(found):
        return None
    if position == min(len(expected), len(found)):
        texts = tuple(answer[position].text if position < len(answer) else "" for answer in (expected, found))
        return Difference(prompt=prompt, position=position, texts=(texts[0], texts[1]), gaps=(None, None))
    one, other = expected[position], found[position]
    return Difference(
        prompt=prompt,
        position=position,
        texts=(one.text, other.text),
        gaps=(logit_gap(one, other.token), logit_gap(other, one.token)),
    )


def logit_gap(step: TokenLogprob, token: int) -> float | None:
    """Return how far the chosen token's logit is above another's; None where the step does not tell that one's."""
    logprob = next((each.logprob for each in step.top if each.token == token), None)
    return None if logprob is None else step.logprob - logprob


def largest_change(expected: Steps, found: Steps) -> float:
    """Return the largest difference between two answers' log-probabilities of a token, before they part."""
    count = _n_equal_tokens(expected, found)
    pairs = zip(expected[:count], found[:count], strict=True)
    return max((abs(one.logprob - other.logprob) for one, other in pairs), default=0.0)


def _n_equal_tokens(one: Steps, other: Steps) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left.token != right.token:
            break
        count += 1
    return count
