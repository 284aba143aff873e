"""Predicted against measured peak memory: `python -m qwen_edge.bench.memory_prediction FILE... [--n-ctx N...]`.

Each case is a process of its own that loads the file through the normal API, fills the context and decodes; its peak
resident size (VmHWM) is what the prediction is compared with. The context is filled with keys and values of zero, all but
the last whole batch: that one is evaluated, with attention over the full context, as a real prompt's last batch would be.
KV cache and buffers are the same as with a prompt that was evaluated throughout, in seconds instead of minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qwen_edge
from qwen_edge import device
from qwen_edge.config import QUANTIZED_KV_TYPES, KVType, LoadConfig
from qwen_edge.errors import NativeError
from qwen_edge.gguf_header import GGUFHeader, read_header
from qwen_edge.quant_types import TENSOR_TYPES

_DECODED = 4
# With flash attention buffers do not grow with the context, but for the mask, and a batch at its end takes minutes: the
# whole batch is evaluated at its beginning, and this many tokens at its end.
_FLASH_BATCH = 32
# Source: src/llama-context.cpp, io_magic; src/llama-kv-cache.cpp, state_write_meta and state_write_data.
_STATE_MAGIC = 0xAF143CD8


def measure(path: Path, config: LoadConfig) -> dict[str, int]:
    """Load, fill the context and decode in this process, which should be a fresh one.

    Returns:
        `predicted_bytes`, asked before anything is loaded, and `peak_bytes`.
    """
    from qwen_edge.memory_check import memory_estimator
    from qwen_edge.memory_kernels import build_kernels

    estimate = memory_estimator(path, config, kernels=build_kernels())
    need = estimate(config) if estimate is not None else None
    assert need is not None, f"{path} cannot be understood"
    with qwen_edge.load(path, config) as model:
        context = model.engine.new_context()
        n_vocab = model.info.n_vocab
        n_last = context.n_batch
        if config.flash_attention == "on":
            context.append([i % n_vocab for i in range(context.n_batch)])
            n_last = _FLASH_BATCH
        n_filled = context.n_ctx - n_last
        if n_filled > 0:
            context.load_state(zero_state(read_header(path), config, n_filled), n_filled)
        context.append([i % n_vocab for i in range(n_last - _DECODED)])
        for token in range(_DECODED):
            context.append([token])
        context.logits()
    return {"predicted_bytes": need.total_bytes, "peak_bytes": device.peak_memory_bytes()}


def zero_state(header: GGUFHeader, config: LoadConfig, n_tokens: int) -> NDArray[np.uint8]:
    """Return a saved KV cache of n tokens whose keys and values are zero.

    Its pages are those that the system has of zeros, but for the few that say something: it takes no memory.

    Args:
        header: Of the model.
        config: flash_attention (V is transposed without) and kv_type decide the form.
        n_tokens: How many.
    """
    prefix = f"{header.metadata['general.architecture']}."
    n_layers = int(header.metadata[f"{prefix}block_count"])
    row_weights = _kv_size(header, prefix)
    kind = TENSOR_TYPES[config.kv_type.upper()]
    row_bytes = row_weights // kind.block_weights * kind.block_bytes
    is_transposed = config.flash_attention == "off"
    cells = np.zeros(n_tokens, dtype=[("position", "<i4"), ("n_sequences", "<u4"), ("sequence", "<i4")])
    cells["position"] = np.arange(n_tokens)
    cells["n_sequences"] = 1
    head = np.array([_STATE_MAGIC, 0, 1, n_tokens], "<u4").tobytes() + cells.tobytes()
    head += np.array([is_transposed, n_layers], "<u4").tobytes()
    key_head = np.int32(kind.ggml_id).tobytes() + np.uint64(row_bytes).tobytes()
    value_head = key_head
    if is_transposed:
        value_head = np.array([kind.ggml_id, kind.block_bytes, row_weights], "<u4").tobytes()
    parts = [head, *(part for one in (key_head, value_head) for part in [one] * n_layers)]
    gaps = [0] + [n_tokens * row_bytes] * (2 * n_layers)
    n_bytes = sum(map(len, parts)) + sum(gaps)
    if sys.platform == "linux":
        area = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page around each word that is written would count
        state = np.frombuffer(area, dtype=np.uint8)
    else:
        state = np.zeros(n_bytes, dtype=np.uint8)
    at = 0
    for part, gap in zip(parts, gaps, strict=True):
        state[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part) + gap
    return state


def _kv_size(header: GGUFHeader, prefix: str) -> int:
    n_heads = int(header.metadata[f"{prefix}attention.head_count"])
    n_kv_heads = int(header.metadata.get(f"{prefix}attention.head_count_kv", n_heads))
    hidden = int(header.metadata[f"{prefix}embedding_length"])
    return n_kv_heads * int(header.metadata.get(f"{prefix}attention.key_length", hidden // n_heads))


def measure_apart(path: Path, config: LoadConfig) -> dict[str, Any]:
    """Return what measure() finds in a fresh process, with the settings and the error of the prediction.

    Raises:
        NativeError: The process failed; with the last that it said.
    """
    settings = {
        name: getattr(config, name)
        for name in ("n_ctx", "kv_type", "flash_attention", "load_mode", "n_threads", "safe_kernels")
    }
    command = [sys.executable, "-m", "qwen_edge.bench.memory_prediction", "--child", str(path)]
    run = subprocess.run([*command, json.dumps(settings)], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise NativeError(f"{path.name} with {settings} failed: {run.stderr.strip()[-500:]}")
    found = json.loads(run.stdout)
    return {
        "file": path.name,
        **settings,
        **found,
        "error": found["predicted_bytes"] / found["peak_bytes"] - 1,
    }


def cases(n_ctx: Sequence[int], kv_types: Sequence[KVType], load_modes: Sequence[str]) -> list[LoadConfig]:
    """Return the settings to measure: all combinations, with flash attention where the KV type needs it."""
    return [
        LoadConfig(
            n_ctx=tokens,
            kv_type=kv_type,
            flash_attention="on" if kv_type in QUANTIZED_KV_TYPES else "off",
            load_mode=mode,  # type: ignore[arg-type]
            n_threads=device.usable_cores(),
            safe_kernels=False,
            prefix_cache=False,
        )
        for mode, tokens, kv_type in itertools.product(load_modes, n_ctx, kv_types)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each case and print one JSON line for it; the last line is the worst error."""
    parser = argparse.ArgumentParser(prog="python -m qwen_edge.bench.memory_prediction", description=__doc__)
    parser.add_argument("files", nargs="+", help="GGUF files")
    parser.add_argument("--n-ctx", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--kv-type", nargs="+", default=["f16", "q8_0"])
    parser.add_argument("--load-mode", nargs="+", default=["read", "mmap"])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        path, settings = options.files
        found = measure(Path(path), LoadConfig(prefix_cache=False, **json.loads(settings)))
        _write(found)
        return 0
    worst = 0.0
    for path in options.files:
        for config in cases(options.n_ctx, options.kv_type, options.load_mode):
            row = measure_apart(Path(path), config)
            worst = max(worst, row["error"], key=abs)
            _write(row)
    _write({"worst_error": worst})
    return 0


def _write(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
