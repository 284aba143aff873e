"""The process that measures one file. Run as `python -m qwen_edge.bench.worker ORDER`, started by bench.runner.

ORDER is JSON; so are the lines on stdout: {"progress": [done, total]}, then {"report": …} or {"error": …}.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import qwen_edge
from qwen_edge import device
from qwen_edge.bench.record import MemoryUse, Samples
from qwen_edge.bench.workload import Repetition, Workload, measure
from qwen_edge.config import LoadConfig
from qwen_edge.engines.onnx_folder import is_onnx, model_files
from qwen_edge.errors import QwenEdgeError
from qwen_edge.native import library, probe

_CHUNK_BYTES = 8 << 20


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Load the file, run the workload, return the report: the fields of FileResult that are measured."""
    path = Path(order["file"])
    workload = Workload(**order["workload"])
    config = LoadConfig(
        tuned=False,  # the settings that the record states are those that are measured
        n_ctx=order["n_ctx"],
        n_threads=order["n_threads"],
        flash_attention=order["flash_attention"],
    )
    for file in model_files(path):
        _read_through(file)
    native = {}
    if not is_onnx(path):
        probe.probe(path)  # asked once per machine and file: no part of the load time
        native = {"system_info": library.system_info()}
    start = time.perf_counter()
    with qwen_edge.load(path, config) as model, model.session() as session:
        load_s = time.perf_counter() - start
        repetitions = measure(model, session, workload, order["repetitions"], _say_progress)
        memory = MemoryUse(
            peak_rss_bytes=device.peak_memory_bytes(), private_dirty_bytes=device.private_dirty_bytes()
        )
        info = model.info
    return {
        "bits_per_weight": 8 * info.weights_bytes / info.n_params,
        "engine": info.engine,
        "settings": info.settings,
        "workload": {**workload.to_dict(), "repetitions": len(repetitions)},
        **_speeds(repetitions),
        "load_s": load_s,
        "memory": {
            "peak_rss_bytes": memory.peak_rss_bytes,
            "private_dirty_bytes": memory.private_dirty_bytes,
        },
        "native": native,
    }


def _speeds(repetitions: list[Repetition]) -> dict[str, Any]:
    prefill = Samples(tuple(repetition.prefill.prefill_tokens_per_s for repetition in repetitions))
    decode = Samples(tuple(repetition.decode.decode_tokens_per_s for repetition in repetitions))
    return {
        "prefill_tokens_per_s": prefill.to_dict(),
        "decode_tokens_per_s": decode.to_dict(),
        "ttft_s": statistics.median(repetition.prefill.ttft_s for repetition in repetitions),
    }


def _read_through(path: Path) -> None:
    """Read a file once, so that every load is measured from the page cache."""
    with path.open("rb") as file:
        while file.read(_CHUNK_BYTES):
            pass


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _say_progress(done: int, total: int) -> None:
    _say({"progress": [done, total]})


def main(order: str) -> None:
    """Carry out one order and say how it went."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            report = run(json.loads(order))
        except QwenEdgeError as error:
            _say({"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}})
            return
    said = [str(entry.message) for entry in caught if entry.category is probe.NativeFallbackWarning]
    _say({"report": {**report, "warnings": said}})


if __name__ == "__main__":
    main(sys.argv[1])
