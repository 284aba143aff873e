"""Whether prompt lookup pays on a workload: the same prompts answered with and without it, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_edge.config import GREEDY, SamplingConfig, SpeculationMode
from qwen_edge.model import Model
from qwen_edge.session import Session
from qwen_edge.types import GenerationStats


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationTrial:
    """What speculation did to one workload.

    Attributes:
        gain: Decode time a token without it over the time with it: above 1 where it is faster. Median of the turns.
        acceptance: Share of the proposed tokens that came; 0.0 where none was proposed.
        proposed_share: Proposed tokens over generated ones.
        tokens_a_call: Generated tokens a decode call; 1.0 without speculation.
        same_text: Share of the prompts that were answered with the same text.
    """

    gain: float
    acceptance: float
    proposed_share: float
    tokens_a_call: float
    same_text: float


def measure(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    mode: SpeculationMode = "prompt_lookup",
    max_tokens: int = 128,
    turns: int = 5,
    sampling: SamplingConfig = GREEDY,
) -> SpeculationTrial:
    """Answer prompts with and without speculation, in turns, and compare.

    Only decoding is compared. Each turn has new sessions: one knows nothing of costs and chances yet, and neither finds
    the prompt in its KV cache, which would round differently.

    Args:
        model: Loaded with n_sessions=1.
        prompts: Tokens of each, at least one prompt.
        mode: What is compared with "off".
        max_tokens: Of each answer.
        turns: How often.
        sampling: How tokens are chosen.

    Raises:
        ContextOverflowError: A prompt does not fit.
        NativeError: No memory for a second KV cache.
    """
    gains: list[float] = []
    for _ in range(turns):
        with model.session(speculation="off") as plain, model.session(speculation=mode) as ahead:
            replies = [
                [_answer(session, prompt, max_tokens, sampling) for session in (plain, ahead)]
                for prompt in prompts
            ]
        gains.append(_time_a_token([a[1] for a, _ in replies]) / _time_a_token([b[1] for _, b in replies]))
    stats = [b[1] for _, b in replies]
    generated = sum(each.generated_tokens for each in stats)
    proposed = sum(each.proposed_tokens for each in stats)
    accepted = sum(each.accepted_tokens for each in stats)
    return SpeculationTrial(
        gain=statistics.median(gains),
        acceptance=accepted / proposed if proposed else 0.0,
        proposed_share=proposed / generated,
        tokens_a_call=generated / (generated - accepted),
        same_text=statistics.mean(a[0] == b[0] for a, b in replies),
    )


def _answer(
    session: Session, prompt: Sequence[int], max_tokens: int, sampling: SamplingConfig
) -> tuple[str, GenerationStats]:
    reply = session.stream_tokens(prompt, max_tokens=max_tokens, sampling=sampling).finish()
    return reply.text, reply.stats


def _time_a_token(stats: Sequence[GenerationStats]) -> float:
    steps = sum(each.generated_tokens - 1 for each in stats)
    return sum(each.decode_s for each in stats) / max(steps, 1)
