"""Which settings are worth trying, and which measurements tell how fast each is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qwen_edge.config import QUANTIZED_KV_TYPES, KVType, Switch
from qwen_edge.tuned import Settings, Workload

_BATCHES = (128, 256, 512, 1024)
# What is read of a prompt while many are compared, and in the end.
SHORT_PROMPT_TOKENS, LONG_PROMPT_TOKENS = 128, 512


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to measure: reading a prompt, or writing an answer, under the settings that matter for it.

    Attributes:
        phase: Which.
        settings: With what does not matter for the phase at its default, so that equal cells are equal.
        n_tokens: Of the prompt; 0 for an answer.
    """

    phase: Literal["prefill", "decode"]
    settings: Settings
    n_tokens: int


def thread_counts(n_cores: int, n_fast: int, n_logical: int) -> tuple[int, ...]:
    """Return numbers of threads to try: half of the cores up to all, and SMT where there is any.

    Args:
        n_cores: Physical cores that may be used.
        n_fast: Of these, those of the fastest kind.
        n_logical: Hardware threads of them all.
    """
    counts = (n_cores, n_fast, n_cores - 1, n_cores // 2, n_logical)
    return tuple(dict.fromkeys(count for count in counts if 1 <= count <= n_logical))


def first_arms(
    default: Settings, threads: Sequence[int], *, is_gguf: bool, may_be_fast: bool, kv_types: Sequence[KVType]
) -> list[Settings]:
    """Return what is tried at first: how weights are held, attention, threads of decode. The default is one of them.

    Args:
        default: What a model is loaded with that was not tuned.
        threads: Numbers to try.
        is_gguf: Whether llama.cpp runs it; ONNX Runtime has threads only.
        may_be_fast: Whether the fast kernels run here without a crash.
        kv_types: That are allowed.
    """
    if not is_gguf:
        return [replace(default, n_threads=count) for count in threads]
    kernels = (None, True) if may_be_fast else (None,)
    arms = [
        replace(
            default,
            safe_kernels=safe,
            flash_attention=flash,
            kv_type=kv_type,
            n_threads=count,
            n_prefill_threads=threads[0] if count != threads[0] else None,
        )
        for safe in kernels
        for kv_type in kv_types
        for flash in _flash_choices(kv_type)
        for count in threads
    ]
    return sorted(dict.fromkeys([default, *arms]), key=lambda arm: arm != default)


def _flash_choices(kv_type: KVType) -> tuple[Switch, ...]:
    return ("on",) if kv_type in QUANTIZED_KV_TYPES else ("off", "on")


def neighbours(
    arm: Settings, threads: Sequence[int], workload: Workload, *, is_gguf: bool, can_bind: bool
) -> Iterator[Settings]:
    """Yield what is tried once an arm has proved good: other batches, prefill threads, bound threads, a mapped file.

    Args:
        arm: A good one.
        threads: Numbers to try.
        workload: A batch longer than its prompt changes nothing.
        is_gguf: As in first_arms.
        can_bind: Whether binding threads to cores could matter here.
    """
    for n_batch in _BATCHES:
        if n_batch < 2 * workload.prompt_tokens:
            yield replace(arm, n_batch=n_batch)
    if not is_gguf:
        return
    for count in threads:
        yield replace(arm, n_prefill_threads=None if count == arm.n_threads else count)
    yield replace(arm, load_mode="mmap")
    if can_bind:
        yield replace(arm, affinity="cores")


def cells_of(arm: Settings, n_tokens: int) -> tuple[Cell, Cell]:
    """Return what tells how fast an arm is: how it reads a prompt of n_tokens, and how it writes an answer."""
    n_prefill = arm.n_prefill_threads or arm.n_threads
    return (
        Cell("prefill", replace(arm, n_threads=n_prefill, n_prefill_threads=None), n_tokens),
        Cell("decode", replace(arm, n_prefill_threads=None, n_batch=Settings(n_threads=1).n_batch), 0),
    )


def turn_s(workload: Workload, prefill_token_s: float, decode_token_s: float) -> float:
    """Return the seconds of a turn.

    Args:
        workload: What is read and written, by each of its sessions.
        prefill_token_s: Seconds a token of a prompt.
        decode_token_s: Seconds a step, in which each session gets a token.
    """
    read = workload.n_sessions * workload.prompt_tokens * prefill_token_s
    return read + workload.answer_tokens * decode_token_s
