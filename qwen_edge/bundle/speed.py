"""How fast a bundled model is, measured as tuning measures, so that the figures of both can be compared."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path

from qwen_edge import device
from qwen_edge.bundle.record import BundledSpeed
from qwen_edge.config import LoadConfig
from qwen_edge.errors import NativeError
from qwen_edge.memory_check import memory_estimator
from qwen_edge.tune.arms import LONG_PROMPT_TOKENS
from qwen_edge.tune.trials import Trials
from qwen_edge.tune.worker import Job
from qwen_edge.tuned import Settings, TuneRecord, Workload

_SAMPLES = 3


def recorded_speed(record: TuneRecord) -> BundledSpeed:
    """Return what tuning measured of the settings that it found."""
    speeds, workload = record.speeds["tuned"], record.workload
    return _speed(speeds["prefill"], speeds["decode"], record.settings, workload)


def measure_speed(
    path: Path, settings: Settings | None = None, workload: Workload | None = None
) -> BundledSpeed:
    """Measure reading and writing in a child process, in turns; the medians count.

    Args:
        path: A GGUF file, or an exported folder.
        settings: With these; None for the defaults.
        workload: A turn of this; None for a chat.

    Raises:
        NativeError: The model does not run with these settings.
    """
    settings = settings or Settings(n_threads=device.default_threads())
    workload = workload or Workload()
    n_tokens = min(LONG_PROMPT_TOKENS, workload.prompt_tokens)
    base = LoadConfig(n_ctx=max(256, workload.n_ctx), n_sessions=workload.n_sessions)
    estimate = memory_estimator(path, base)

    def need_bytes(config: LoadConfig) -> int | None:
        need = estimate(config) if estimate is not None else None
        return None if need is None else need.wanted_bytes

    seconds: dict[str, list[float]] = {"prefill": [], "decode": []}
    with Trials(path, need_bytes) as trials:
        for _ in range(_SAMPLES):
            for phase, found in seconds.items():
                job = Job(
                    phase="prefill" if phase == "prefill" else "decode",
                    settings=settings,
                    n_tokens=n_tokens,
                    depth=workload.depth,
                    n_sessions=workload.n_sessions,
                    n_ctx=base.n_ctx,
                )
                token_s = trials.sample(job)
                if not token_s:
                    reason = trials.errors.get(settings, "no time was taken")
                    raise NativeError(
                        f"the speed of {path} cannot be measured: {reason}",
                        hint="qwen-edge doctor tells whether models run here at all.",
                    )
                found.append(token_s)
    prefill_s, decode_s = (statistics.median(found) for found in seconds.values())
    return _speed(1 / prefill_s, workload.n_sessions / decode_s, settings, workload)


def _speed(prefill: float, decode: float, settings: Settings, workload: Workload) -> BundledSpeed:
    return BundledSpeed(
        prefill_tokens_per_s=round(prefill, 2),
        decode_tokens_per_s=round(decode, 2),
        prompt_tokens=workload.prompt_tokens,
        depth=workload.depth,
        n_sessions=workload.n_sessions,
        settings=asdict(settings),
    )
