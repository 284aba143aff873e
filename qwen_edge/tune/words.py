"""Settings and findings in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qwen_edge.tuned import Settings, TuneRecord, Workload

# Rows of a round that are told; the others were slower still.
_TOLD = 8


def describe_settings(settings: Settings) -> str:
    """Return settings on one line, what is at its default left out but for the threads."""
    parts = [_count(settings.n_threads, "thread")]
    if settings.n_prefill_threads and settings.n_prefill_threads != settings.n_threads:
        parts = [
            f"{_count(settings.n_threads, 'thread')} for answers, {settings.n_prefill_threads} for prompts"
        ]
    if settings.affinity == "cores":
        parts.append("bound to cores")
    if settings.safe_kernels:
        parts.append("weights not rearranged")
    if settings.flash_attention == "on":
        parts.append("flash attention")
    if settings.kv_type != "f16":
        parts.append(f"KV cache {settings.kv_type}")
    if settings.load_mode == "mmap":
        parts.append("file mapped")
    if settings.n_batch != Settings(n_threads=1).n_batch:
        parts.append(f"batches of {settings.n_batch}")
    return ", ".join(parts)


def describe_workload(workload: Workload) -> str:
    """Return a workload on one line."""
    text = (
        f"prompts of {workload.prompt_tokens:,} tokens and answers of {workload.answer_tokens:,}, "
        f"{workload.depth:,} tokens into the conversation"
    )
    return f"{text}, {workload.n_sessions} at once" if workload.n_sessions > 1 else text


def verdict(record: TuneRecord) -> str:
    """Return what came of it, in a sentence."""
    if record.gain <= 1.0:
        return "The default settings are the fastest here, or so close that nothing is gained."
    return f"{describe_settings(record.settings)}: {record.gain:.2f} times as fast as the default settings."


def explain(record: TuneRecord) -> Iterator[str]:
    """Yield the lines that tell why these settings were chosen."""
    before = ""
    for number, step in enumerate(record.steps, 1):
        title = _ROUNDS[step["round"]] if step["round"] != before else "the better ones of these again"
        yield f"Round {number}: {title}"
        before = step["round"]
        tried: list[dict[str, Any]] = step["tried"]
        best = tried[0]["turn_s"] if tried else 0.0
        for row in tried[:_TOLD]:
            fate = "kept" if row["kept"] else "dropped"
            words = describe_settings(Settings(**row["settings"]))
            yield f"  {row['turn_s']:8.2f} s a turn  {row['turn_s'] / best:5.2f}  {fate:7}  {words}"
        if len(tried) > _TOLD:
            yield f"  and {len(tried) - _TOLD} that were slower still"


_ROUNDS = {
    "first": "how weights are held, attention and threads, on short prompts",
    "next": "around the best: batches, threads for prompts, mapping",
    "last": "the best beside the default, in turns",
}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
