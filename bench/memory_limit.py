"""Limits of memory just below and above the need: `python -m qwen_edge.bench.memory_limit PATH [--n-ctx 2048|auto]`.

A model is loaded and its contexts are filled (`memory_cell`) in a cgroup that may have a share of what it is predicted to
hold (its peak without the pages of a mapped file, which the system takes back): it is to be refused with the right numbers,
or to run to the end, and never to be killed. With `--n-ctx auto` loading chooses the context itself, and what it chose has to
run. With `--taken` another process in the cgroup takes memory after the plan was made and before the model is loaded. Making
a cgroup needs the rights for it (Linux; root, or a delegated subtree).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_edge import device
from qwen_edge.bench.memory_cell import run_cell
from qwen_edge.bench.memory_cgroup import MemoryCgroup, forget_cached, memory_cgroup
from qwen_edge.bench.memory_prediction import predict
from qwen_edge.config import AUTO_N_CTX, LoadConfig
from qwen_edge.engines.onnx_folder import model_files

SHARES = (0.90, 0.95, 0.97, 0.99, 1.0, 1.01, 1.03, 1.05)
# An automatic context is tried under the need of this many tokens.
_AUTO_BASIS = 2048
# Takes as many bytes as it is told, says so, and holds them until its input ends.
_TAKER = "import sys; held = bytearray(b'x') * int(sys.argv[1]); print(flush=True); sys.stdin.read()"


@contextlib.contextmanager
def _taken(n_bytes: int, cgroup: MemoryCgroup) -> Iterator[None]:
    """Hold memory in a second process of the cgroup."""
    if not n_bytes:
        yield
        return
    with subprocess.Popen(
        [sys.executable, "-c", _TAKER, str(n_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=cgroup.enter,
    ) as process:
        assert process.stdout is not None, "Bug: its output is a pipe"
        process.stdout.readline()
        yield
        process.communicate()


def try_limit(
    path: Path, config: LoadConfig, limit_bytes: int, *, taken_bytes: int = 0, ballast_bytes: int = 0
) -> dict[str, Any]:
    """Return what became of a model under a limit.

    Args:
        path: A GGUF file or an exported folder.
        config: How it is loaded; n_ctx may be automatic.
        limit_bytes: Of the cgroup.
        taken_bytes: Held in it by another process.
        ballast_bytes: Held by the process itself beside the model, as in run_cell().

    Returns:
        "outcome": "ran", "refused", "killed" or "failed"; "n_ctx" that was filled, "peak_bytes", "held_bytes" and
        "disk_bytes" of the process, "cgroup_peak_bytes" of both, "kills" by the kernel in it, and what was said ("said").

    Raises:
        UnsupportedError: As memory_cgroup().
    """
    for file in model_files(path):
        forget_cached(file)
    with memory_cgroup() as cgroup:
        cgroup.limit(limit_bytes)
        with _taken(taken_bytes, cgroup):
            outcome = run_cell(path, config, enter=cgroup.enter, ballast_bytes=ballast_bytes)
        peak_bytes, kills = cgroup.peak_bytes(), cgroup.kills()
    word = "refused" if outcome.refusal else "ran"
    if outcome.exit_code != 0:
        word = "killed" if outcome.exit_code < 0 else "failed"
    return {
        "outcome": word,
        "n_ctx": outcome.n_ctx,
        "peak_bytes": outcome.peak_bytes,
        "held_bytes": outcome.held_bytes,
        "disk_bytes": outcome.disk_bytes,
        "cgroup_peak_bytes": peak_bytes,
        "kills": kills,
        "said": outcome.refusal or ("" if word == "ran" else outcome.stderr),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Try each share, print one JSON line for it; the exit code is 1 where a process was killed or failed."""
    parser = argparse.ArgumentParser(prog="python -m qwen_edge.bench.memory_limit", description=__doc__)
    parser.add_argument("path", type=Path, help="a GGUF file, or a folder exported to ONNX")
    parser.add_argument("--n-ctx", default="2048", help="tokens, or auto")
    parser.add_argument("--load-mode", choices=["read", "mmap"], default="read")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=SHARES, help="of what it is predicted to hold"
    )
    parser.add_argument("--taken", type=int, default=0, help="bytes that another process takes of the limit")
    options = parser.parse_args(argv)
    config = LoadConfig(
        n_ctx=AUTO_N_CTX if options.n_ctx == "auto" else int(options.n_ctx),
        load_mode=options.load_mode,
        n_threads=device.usable_cores(),
        safe_kernels=False,
        prefix_cache=False,
    )
    basis = replace(config, n_ctx=_AUTO_BASIS) if config.n_ctx == AUTO_N_CTX else config
    need = predict(options.path, basis)
    is_sound = True
    for share in options.shares:
        limit_bytes = int(share * need.held_bytes)
        found = try_limit(options.path, config, limit_bytes, taken_bytes=options.taken)
        is_sound &= found["outcome"] in ("ran", "refused")
        row = {"file": options.path.name, "load_mode": config.load_mode, "share": share} | {
            "limit_bytes": limit_bytes,
            "held_bytes": need.held_bytes,
            "wanted_bytes": need.wanted_bytes,
        }
        sys.stdout.write(json.dumps(row | found) + "\n")
        sys.stdout.flush()
    return 0 if is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
