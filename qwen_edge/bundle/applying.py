"""What loading a bundle takes from it: its settings, and what tuning found where this is the machine that was tuned."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Collection
from pathlib import Path

from qwen_edge.bundle.record import Bundle, BundleMachine, is_bundle, read_bundle
from qwen_edge.config import LoadConfig
from qwen_edge.errors import QwenEdgeError
from qwen_edge.tuned import Settings, TuneRecord, Workload, with_record

_log = logging.getLogger(__name__)


def bundle_at(name_or_path: str | os.PathLike[str]) -> Bundle | None:
    """Return the bundle that a name or path means, None where it means something else.

    Raises:
        FormatError: It is damaged.
    """
    if not is_bundle(name_or_path):
        return None
    return read_bundle(Path(name_or_path))


def with_bundle(bundle: Bundle, config: LoadConfig, asked: Collection[str] = ()) -> LoadConfig:
    """Return the settings to load a bundle with: its own in place of what nobody asked for.

    Args:
        bundle: What is loaded.
        config: What is asked for.
        asked: Names of settings that were given, defaults or not.
    """
    defaults = LoadConfig()
    own = bundle.load.config()
    names = [field.name for field in dataclasses.fields(bundle.load)]
    free = {
        name: getattr(own, name)
        for name in names
        if name not in asked and getattr(config, name) == getattr(defaults, name)
    }
    if bundle.model.format == "onnx":
        free = {name: value for name, value in free.items() if name in ("n_ctx", "n_batch", "n_threads")}
    _log.debug("settings of the bundle: %s", free)
    return dataclasses.replace(config, **free)


def with_bundled_tuning(bundle: Bundle, config: LoadConfig, asked: Collection[str] = ()) -> LoadConfig:
    """Return settings with what tuning found before the bundle was made, where this is the same machine."""
    record = tuning_of(bundle)
    if not config.tuned or record is None or bundle.machine != BundleMachine.here():
        return config
    return with_record(record, config, asked)


def tuning_of(bundle: Bundle) -> TuneRecord | None:
    """Return what tuning found before a bundle was made; None where there is nothing, or what cannot be."""
    tuned = bundle.tuned
    if tuned is None:
        return None
    try:
        settings, workload = Settings(**tuned.settings), Workload(**tuned.workload)
        settings.config(LoadConfig(n_sessions=workload.n_sessions))
        record = TuneRecord(
            settings=settings,
            workload=workload,
            speeds=tuned.speeds,
            seconds=0.0,
            measured_at=0.0,
            speculation="prompt_lookup" if tuned.speculation == "prompt_lookup" else "off",
            speculation_gain=tuned.speculation_gain,
        )
        return record if record.gain > 0 else None
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, QwenEdgeError):
        return None
