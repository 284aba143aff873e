"""Predicted against measured peak memory: `python -m qwen_edge.bench.memory_prediction PATH... [--n-ctx N...]`.

Each case is a process of its own that loads a GGUF file or an exported folder through the normal API, uses its contexts to
the last token and decodes (`memory_cell`); its peak resident size (VmHWM) is what the prediction is compared with.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_edge import device
from qwen_edge.bench.memory_cell import SETTINGS, run_cell
from qwen_edge.config import QUANTIZED_KV_TYPES, KVType, LoadConfig
from qwen_edge.engines.onnx_folder import is_onnx, model_files
from qwen_edge.errors import FormatError, NativeError
from qwen_edge.memory import MemoryEstimate
from qwen_edge.memory_check import memory_estimator
from qwen_edge.memory_kernels import expected_kernels

# How long a case waits for memory that other programs hold, and how often it looks.
_PATIENCE_S, _LOOK_EVERY_S = 1800.0, 5.0


class Record:
    """The cases of a run that may be cut short: one JSON line for each, written when it was measured."""

    def __init__(self, path: Path | None) -> None:
        """Read what an earlier run measured.

        Args:
            path: A file, which need not be there; None keeps nothing.
        """
        self._path = path
        self._peaks: dict[str, int] = {}
        text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the run was ended while it wrote
            self._peaks[_key(row["case"])] = row["peak_bytes"]
        self._begin = "" if text.endswith("\n") or not text else "\n"

    def peak_bytes(self, case: dict[str, Any]) -> int | None:
        """Return what was measured of a case; None where it was not."""
        return self._peaks.get(_key(case))

    def add(self, case: dict[str, Any], peak_bytes: int) -> None:
        """Keep what was measured."""
        self._peaks[_key(case)] = peak_bytes
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(self._begin + json.dumps({"case": case, "peak_bytes": peak_bytes}) + "\n")
            self._begin = ""


def _key(case: dict[str, Any]) -> str:
    return json.dumps(case, sort_keys=True)


def predict(path: Path, config: LoadConfig) -> MemoryEstimate:
    """Return what the planner says.

    Raises:
        FormatError: The file does not tell the sizes of its model.
    """
    estimate = memory_estimator(path, config, kernels=expected_kernels(config, path))
    need = estimate(config) if estimate is not None else None
    if need is None:
        raise FormatError(f"{path} does not tell the sizes of its model")
    return need


def compare(path: Path, config: LoadConfig, record: Record | None = None) -> dict[str, Any]:
    """Return the case, what was predicted and what a fresh process took.

    Args:
        path: A GGUF file or an exported folder.
        config: Settings of the case.
        record: Of what was measured before, which is taken, and gets what is measured now.

    Raises:
        NativeError: The process failed; with the last that it said.
        FormatError: The file does not tell the sizes of its model.
    """
    record = record or Record(None)
    need = predict(path, config)
    case = {
        "file": path.name,
        "size_bytes": sum(file.stat().st_size for file in model_files(path)),
        "kernels": [] if is_onnx(path) else sorted(expected_kernels(config, path)),
        **{name: getattr(config, name) for name in SETTINGS},
    }
    peak_bytes = record.peak_bytes(case)
    if peak_bytes is None:
        _wait_for(need.wanted_bytes)
        outcome = run_cell(path, config)
        if not outcome.peak_bytes:
            raise NativeError(
                f"{path.name} with {case} failed ({outcome.exit_code}): {outcome.refusal or outcome.stderr}"
            )
        peak_bytes = outcome.peak_bytes
        record.add(case, peak_bytes)
    return {
        **case,
        "predicted_bytes": need.total_bytes,
        "peak_bytes": peak_bytes,
        "error": need.total_bytes / peak_bytes - 1,
    }


def _wait_for(wanted_bytes: int) -> None:
    """Wait until so much is free; when patience ends, loading says what is missing."""
    end = time.monotonic() + _PATIENCE_S
    while device.available_memory_bytes().available_bytes < wanted_bytes and time.monotonic() < end:
        time.sleep(_LOOK_EVERY_S)


def cases(
    path: Path,
    *,
    n_ctx: Sequence[int],
    kv_types: Sequence[KVType] = ("f16",),
    load_modes: Sequence[str] = ("read",),
    n_sessions: Sequence[int] = (1,),
    n_batch: Sequence[int] = (512,),
    n_threads: Sequence[int] = (),
    safe_kernels: bool = False,
) -> list[LoadConfig]:
    """Return the settings to measure: all combinations, with flash attention where the KV type needs it.

    An exported folder has one type of KV cache and one way to be loaded: it gets the default of each.
    """
    if is_onnx(path):
        kv_types, load_modes, safe_kernels = ("f16",), ("read",), False
    return [
        LoadConfig(
            n_ctx=tokens,
            kv_type=kv_type,
            flash_attention="on" if kv_type in QUANTIZED_KV_TYPES else "off",
            load_mode=mode,  # type: ignore[arg-type]
            n_sessions=sessions,
            n_batch=batch,
            n_threads=threads,
            safe_kernels=safe_kernels,
            prefix_cache=False,
        )
        for mode, tokens, kv_type, sessions, batch, threads in itertools.product(
            load_modes, n_ctx, kv_types, n_sessions, n_batch, n_threads or (device.usable_cores(),)
        )
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each case and print one JSON line for it; the last line is the worst error."""
    parser = argparse.ArgumentParser(prog="python -m qwen_edge.bench.memory_prediction", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="GGUF files, and folders exported to ONNX")
    parser.add_argument("--n-ctx", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--kv-type", nargs="+", default=["f16", "q8_0"])
    parser.add_argument("--load-mode", nargs="+", default=["read", "mmap"])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1])
    parser.add_argument("--n-batch", type=int, nargs="+", default=[512])
    parser.add_argument("--threads", type=int, nargs="+", default=[], help="default: the usable cores")
    parser.add_argument("--safe-kernels", action="store_true", help="nothing rearranged, no AMX")
    parser.add_argument(
        "--record", type=Path, help="JSON lines of what was measured: a run that was cut goes on from there"
    )
    options = parser.parse_args(argv)
    record = Record(options.record)
    worst = 0.0
    for path in options.paths:
        for config in cases(
            path,
            n_ctx=options.n_ctx,
            kv_types=options.kv_type,
            load_modes=options.load_mode,
            n_sessions=options.sessions,
            n_batch=options.n_batch,
            n_threads=options.threads,
            safe_kernels=options.safe_kernels,
        ):
            row = compare(path, config, record)
            worst = max(worst, row["error"], key=abs)
            _write(row)
    _write({"worst_error": worst})
    return 0


def _write(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
