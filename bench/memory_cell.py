"""One process that loads a model, fills its contexts and decodes: what predictions and limits of memory are tried on.

`python -m qwen_edge.bench.memory_cell PATH SETTINGS` is that process; it says what became of it in one JSON line.

A context is filled with keys and values of zero, all but the last whole batch: that one is evaluated, with attention over
the full context, as a real prompt's last batch would be. KV cache and buffers are the same as with a prompt that was
evaluated throughout, in seconds instead of minutes. A batch that takes long is stopped after its first layers: all layers
use the same buffers. Several sessions evaluate all of theirs, and the last batch together.
"""

from __future__ import annotations

import json
import mmap
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qwen_edge
from qwen_edge import device
from qwen_edge.config import LoadConfig
from qwen_edge.engines.base import Context
from qwen_edge.engines.onnx_folder import is_onnx, read_folder
from qwen_edge.errors import CancelledError, InsufficientMemoryError
from qwen_edge.gguf_header import GGUFHeader, read_header
from qwen_edge.model import Model
from qwen_edge.quant_types import TENSOR_TYPES

# What a cell is told of LoadConfig.
SETTINGS = (
    "n_ctx",
    "kv_type",
    "flash_attention",
    "load_mode",
    "n_sessions",
    "n_batch",
    "n_threads",
    "safe_kernels",
)

_DECODED = 4
# With flash attention buffers do not grow with the context, but for the mask, and a batch at its end takes minutes: the
# whole batch is evaluated at its beginning, and this many tokens at its end.
_FLASH_BATCH = 32
# The first layer of any batch on one busy core without AMX: 512 tokens behind 27,000 of a 1.5B.
_BATCH_S = 40.0
# Source: src/llama-context.cpp, io_magic; src/llama-kv-cache.cpp, state_write_meta and state_write_data.
_STATE_MAGIC = 0xAF143CD8
# Source: engines/onnx_cache.py, the head of a saved state.
_ONNX_STATE_MAGIC = 0x514F4E58


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOutcome:
    """What became of a process.

    Attributes:
        exit_code: 0 where it ran to the end or was refused; negative is the signal that ended it.
        n_ctx: Tokens of each context, which was full; 0 where it did not run.
        peak_bytes: Its peak resident size (VmHWM); 0 where it did not run.
        held_bytes: Its resident size at the end but for the pages of a mapped model; 0 where it did not run.
        disk_bytes: Read from the disk for one token at the end of the context; 0 where it did not run.
        refusal: Why the model was not loaded, and what would fit; "" where it was.
        stderr: The last that it said.
    """

    exit_code: int
    n_ctx: int = 0
    peak_bytes: int = 0
    held_bytes: int = 0
    disk_bytes: int = 0
    refusal: str = ""
    stderr: str = ""


def run_cell(
    path: Path, config: LoadConfig, *, enter: Callable[[], None] | None = None, ballast_bytes: int = 0
) -> CellOutcome:
    """Run one process to its end.

    Args:
        path: A GGUF file or an exported folder.
        config: Of which SETTINGS are used.
        enter: Called in the process before its program begins, to put it under a limit.
        ballast_bytes: Held by it beside the model: the tables of a vocabulary that random weights come without.
    """
    settings = json.dumps({name: getattr(config, name) for name in SETTINGS})
    command = [
        sys.executable,
        "-m",
        "qwen_edge.bench.memory_cell",
        str(path),
        settings,
        str(ballast_bytes),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=enter)
    facts = json.loads(run.stdout) if run.returncode == 0 else {}
    return CellOutcome(exit_code=run.returncode, stderr=run.stderr.strip()[-500:], **facts)


def fill(model: Model, path: Path) -> dict[str, int]:
    """Use the contexts of a loaded model to the last batch; return n_ctx, held_bytes and disk_bytes of CellOutcome.

    Args:
        model: As load() made it.
        path: What it was loaded from.
    """
    settings = model.info.settings
    is_flash = settings.get("flash_attention") == "on"
    contexts = [model.engine.new_context() for _ in range(settings["n_sessions"])]
    n_last = min(contexts[0].n_batch, contexts[0].n_ctx)
    n_vocab = model.info.n_vocab
    if len(contexts) == 1:
        (context,) = contexts
        if is_flash:
            _begin(context, [i % n_vocab for i in range(n_last)])
            n_last = min(n_last, _FLASH_BATCH)
        n_filled = context.n_ctx - n_last
        if n_filled > 0:
            context.load_state(_state(path, settings, n_filled), n_filled)
        disk_bytes = _finish(context, n_vocab)
        return {"n_ctx": context.n_ctx, "held_bytes": _held_bytes(path), "disk_bytes": disk_bytes}
    for context in contexts:
        while context.n_ctx - context.n_past > n_last:
            count = min(context.n_batch, context.n_ctx - n_last - context.n_past)
            context.append([i % n_vocab for i in range(count)])
    with ThreadPoolExecutor(len(contexts)) as pool:
        disk_bytes = max(pool.map(lambda context: _finish(context, n_vocab), contexts))
    return {"n_ctx": contexts[0].n_ctx, "held_bytes": _held_bytes(path), "disk_bytes": disk_bytes}


def _finish(context: Context, n_vocab: int) -> int:
    """Evaluate what a context has room for, the last tokens one by one; return what was read from the disk for the last."""
    n_rest = context.n_ctx - context.n_past
    n_decoded = min(_DECODED, n_rest)
    if n_rest > n_decoded:
        _begin(context, [i % n_vocab for i in range(n_rest - n_decoded)])
    read_before = _disk_bytes()
    for token in range(n_decoded):
        read_before = _disk_bytes()
        context.append([token])
    context.logits()
    return _disk_bytes() - read_before


def _begin(context: Context, tokens: list[int]) -> None:
    """Evaluate a batch, or as much of its layers as there is time for; its tokens are then not in the context."""
    timer = threading.Timer(_BATCH_S, context.cancel)
    timer.start()
    try:
        context.append(tokens)
    except CancelledError:
        pass
    finally:
        timer.cancel()
        timer.join()
        context.clear_cancel()  # it may have come when all was done


def _state(path: Path, settings: dict[str, Any], n_tokens: int) -> NDArray[np.uint8]:
    if is_onnx(path):
        return zero_onnx_state(path, n_tokens)
    return zero_state(
        read_header(path),
        kv_type=settings["kv_type"],
        is_transposed=settings["flash_attention"] == "off",
        n_tokens=n_tokens,
    )


def zero_state(header: GGUFHeader, *, kv_type: str, is_transposed: bool, n_tokens: int) -> NDArray[np.uint8]:
    """Return a saved KV cache of llama.cpp of n tokens whose keys and values are zero.

    Args:
        header: Of the model.
        kv_type: Of the cache.
        is_transposed: Whether values are, which they are without flash attention.
        n_tokens: How many.
    """
    prefix = f"{header.metadata['general.architecture']}."
    n_layers = int(header.metadata[f"{prefix}block_count"])
    row_weights = _kv_size(header, prefix)
    kind = TENSOR_TYPES[kv_type.upper()]
    row_bytes = row_weights // kind.block_weights * kind.block_bytes
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
    state = _zeros(sum(map(len, parts)) + sum(gaps))
    at = 0
    for part, gap in zip(parts, gaps, strict=True):
        state[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part) + gap
    return state


def zero_onnx_state(folder: Path, n_tokens: int) -> NDArray[np.uint8]:
    """Return a saved KV cache of an exported folder of n tokens whose keys and values are zero."""
    shape = read_folder(folder).shape
    head = np.array(
        [_ONNX_STATE_MAGIC, n_tokens, 2 * shape.n_layers, shape.n_kv_heads, shape.head_dim], "<u4"
    ).view(np.uint8)
    state = _zeros(len(head) + int(n_tokens * shape.kv_bytes_per_token(4)))
    state[: len(head)] = head
    return state


def _zeros(n_bytes: int) -> NDArray[np.uint8]:
    """Return zeros that take no memory where nothing else is written to them."""
    if sys.platform not in ("linux", "android"):
        return np.zeros(n_bytes, dtype=np.uint8)
    area = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page around each word that is written would count
    return np.frombuffer(area, dtype=np.uint8)


def _kv_size(header: GGUFHeader, prefix: str) -> int:
    n_heads = int(header.metadata[f"{prefix}attention.head_count"])
    n_kv_heads = int(header.metadata.get(f"{prefix}attention.head_count_kv", n_heads))
    hidden = int(header.metadata[f"{prefix}embedding_length"])
    return n_kv_heads * int(header.metadata.get(f"{prefix}attention.key_length", hidden // n_heads))


def _held_bytes(path: Path) -> int:
    """Return the resident size of this process without the pages of a mapped file. Source: proc(5), smaps."""
    if sys.platform != "linux":
        return 0
    held_kib, is_counted = 0, True
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Rss":
            held_kib += int(value.split()[0]) if is_counted else 0
        elif not name[:1].isupper():  # the head of a region, which ends with its file
            is_counted = not line.endswith(str(path.resolve()))
    return held_kib * 1024


def _disk_bytes() -> int:
    """Return what this process has read from disks so far. Source: proc(5), /proc/pid/io, read_bytes."""
    try:
        found = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def main(path: str, settings: str, ballast_bytes: str = "0") -> int:
    """Load, fill and decode in this process, which should be a fresh one, and print what became of it."""
    found: dict[str, Any]
    ballast = bytearray(b"x") * int(ballast_bytes)
    try:
        with qwen_edge.load(
            path, LoadConfig(prefix_cache=False, tuned=False, **json.loads(settings))
        ) as model:
            facts = fill(model, Path(path))
        found = facts | {"peak_bytes": device.peak_memory_bytes()}
    except InsufficientMemoryError as error:
        found = {"refusal": f"{error.message}. {error.hint}"}
    del ballast
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
