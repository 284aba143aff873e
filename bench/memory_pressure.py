"""Another program takes memory: `python -m qwen_edge.bench.memory_pressure [--limit 350MB] [--shares 0.3 0.6 0.9 0.97]`.

Two processes share a cgroup with a limit (Linux, and the rights for it: as root). One loads a model of random weights and uses
its context to the end, the other takes a share of what is free at one moment of that: before the plan, after it, when half of
the weights are read, when the model is loaded, when half of the context is used, and while it decodes. The model may run,
run with a smaller context, or be refused in words; nobody may be killed. Each cell is run with n_ctx as planned and with
n_ctx="auto".

Prints a table in markdown, with --format json one JSON line for each cell. The exit code is 1 where a process was killed, or
failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import qwen_edge
from qwen_edge import device
from qwen_edge import model as model_module
from qwen_edge.bench.memory_cgroup import forget_cached, memory_cgroup
from qwen_edge.bench.memory_prediction import predict
from qwen_edge.byte_sizes import parse_bytes
from qwen_edge.catalog import MODELS
from qwen_edge.config import AUTO_N_CTX, LoadConfig
from qwen_edge.errors import InsufficientMemoryError
from qwen_edge.memory_advice import largest_context
from qwen_edge.memory_check import require_memory
from qwen_edge.memory_guard import MemoryGuard
from qwen_edge.trial_model import write_trial_model

MOMENTS = (
    "before the plan",
    "after the plan",
    "weights half read",
    "loaded",
    "context half used",
    "decoding",
)
SHARES = (0.3, 0.6, 0.9, 0.97)
# Few layers, so that a context is filled in seconds; embedding, widths and activations are those of the whole model.
_MODEL, _TYPE, _N_LAYERS, _N_CTX = "qwen3-0.6b", "Q4_0", 4, 1024
# Takes as many bytes as each line of its input says, and holds them until that ends.
_TAKER = """
import sys
held = []
for line in sys.stdin:
    held.append(bytearray(b"x") * int(line))
    print(flush=True)
"""


def run_cell(path: Path, *, n_ctx: int, limit_bytes: int, moment: str, share: float) -> dict[str, Any]:
    """Return what became of a model beside a program that takes memory.

    Args:
        path: A GGUF file.
        n_ctx: As in LoadConfig.
        limit_bytes: Of both together.
        moment: One of MOMENTS.
        share: Of what is free then.

    Returns:
        "outcome": "ran", "refused", "killed" or "failed"; "n_ctx", "taken_bytes", "kills" of both, "said".

    Raises:
        UnsupportedError: No cgroup can be made here.
    """
    forget_cached(path)
    command = [sys.executable, "-m", "qwen_edge.bench.memory_pressure", "--cell"]
    settings = json.dumps({"path": str(path), "n_ctx": n_ctx, "moment": moment, "share": share})
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with memory_cgroup() as cgroup:
        cgroup.limit(limit_bytes)
        pipes["preexec_fn"] = cgroup.enter
        with (
            subprocess.Popen([sys.executable, "-c", _TAKER], **pipes) as taker,
            subprocess.Popen([*command, settings], stderr=subprocess.PIPE, **pipes) as cell,
        ):
            taken_bytes = _serve(cell, taker)
            output, errors = cell.communicate()
            taker.communicate()
        kills = cgroup.kills()
    found = json.loads(output) if cell.returncode == 0 else {"said": errors.strip()[-500:]}
    word = "refused" if found.get("said") else "ran"
    if cell.returncode != 0:
        word = "killed" if cell.returncode < 0 else "failed"
    return {"n_ctx": 0, "said": ""} | found | {"outcome": word, "taken_bytes": taken_bytes, "kills": kills}


def _serve(cell: subprocess.Popen[str], taker: subprocess.Popen[str]) -> int:
    """Let the taker take what the cell asks for, once; return how much that was."""
    assert cell.stdout is not None, "Bug: its output is a pipe"
    assert cell.stdin is not None, "Bug: its input is a pipe"
    assert taker.stdin is not None, "Bug: its input is a pipe"
    assert taker.stdout is not None, "Bug: its output is a pipe"
    asked = cell.stdout.readline()
    if not asked:
        return 0
    taker.stdin.write(asked)
    taker.stdin.flush()
    taker.stdout.readline()
    cell.stdin.write("\n")
    cell.stdin.flush()
    return int(asked)


class _Cell:
    """The process that uses the model, and has memory taken at one moment."""

    def __init__(self, moment: str, share: float) -> None:
        self._moment = moment
        self._share = share

    def at(self, moment: str) -> None:
        """Have a share of what is free taken, where this is the moment; once."""
        if moment != self._moment:
            return
        self._moment = ""
        n_bytes = int(self._share * device.available_memory_bytes().available_bytes)
        sys.stdout.write(f"{n_bytes}\n")
        sys.stdout.flush()
        sys.stdin.readline()

    def run(self, path: str, n_ctx: int) -> dict[str, Any]:
        """Load a model and use its context to the end; return n_ctx, and why it was refused."""
        self.at("before the plan")
        config = LoadConfig(
            n_ctx=n_ctx,
            n_threads=1,  # memory is what is tried, and other programs may be at work
            safe_kernels=False,
            prefix_cache=False,
            tuned=False,
        )
        try:
            with self._watched(), qwen_edge.load(path, config) as model:
                n_ctx = model.info.settings["n_ctx"]
                self.at("loaded")
                context = model.engine.new_context()
                n_vocab = model.info.n_vocab
                while context.n_past < n_ctx - context.n_batch:
                    context.append([i % n_vocab for i in range(context.n_batch)])
                    if context.n_past >= n_ctx // 2:
                        self.at("context half used")
                while context.n_past < n_ctx - 8:
                    count = min(context.n_batch, n_ctx - 8 - context.n_past)
                    context.append([i % n_vocab for i in range(count)])
                self.at("decoding")
                for token in range(8):
                    context.append([token])
        except InsufficientMemoryError as error:
            return {"n_ctx": n_ctx, "said": f"{error.message}. {error.hint}"}
        return {"n_ctx": n_ctx}

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Have the moments inside load() noticed."""
        look = MemoryGuard.before_weights

        def planned(path: Path, config: LoadConfig) -> LoadConfig:
            found = require_memory(path, config)
            self.at("after the plan")
            return found

        def read(guard: MemoryGuard, progress: float) -> None:
            if progress >= 0.5:
                self.at("weights half read")
            look(guard, progress)

        with (
            mock.patch.object(model_module, "require_memory", planned),
            mock.patch.object(MemoryGuard, "before_weights", read),
        ):
            yield


def planned_n_ctx(path: Path, limit_bytes: int) -> int:
    """Return the largest context with which a file fits in a limit."""
    return largest_context(
        lambda config: predict(path, config),
        LoadConfig(safe_kernels=False),
        _N_CTX,
        lambda need: need.held_bytes <= 0.95 * limit_bytes,
    )


def markdown_table(rows: Sequence[dict[str, Any]], *, name: Callable[[dict[str, Any]], str]) -> str:
    """Return moments x shares, in each cell what became of the model.

    Args:
        rows: The cells.
        name: Says that of one.
    """
    shares = sorted({row["share"] for row in rows})
    lines = [f"| taken at | {' | '.join(f'{share:.0%} of what is free' for share in shares)} |"]
    lines.append("|" + "---|" * (len(shares) + 1))
    for moment in MOMENTS:
        cells = {row["share"]: name(row) for row in rows if row["moment"] == moment}
        if cells:
            lines.append(f"| {moment} | {' | '.join(cells.get(share, '') for share in shares)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run each cell; print tables, or a line for each."""
    parser = argparse.ArgumentParser(prog="python -m qwen_edge.bench.memory_pressure", description=__doc__)
    parser.add_argument("--limit", type=parse_bytes, default=parse_bytes("350MB"))
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of what is free then")
    parser.add_argument("--moments", nargs="+", choices=MOMENTS, default=MOMENTS)
    parser.add_argument("--folder", type=Path, help="where random weights are kept")
    parser.add_argument("--format", choices=["markdown", "json"], default="markdown")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.cell:
        settings = json.loads(options.cell)
        found = _Cell(settings["moment"], settings["share"]).run(settings["path"], settings["n_ctx"])
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    shape = MODELS[_MODEL].shape
    assert shape is not None, f"Bug: {_MODEL} has no shape"
    rows: list[dict[str, Any]] = []
    with memory_cgroup(), tempfile.TemporaryDirectory(dir=options.folder, prefix="pressure-") as folder:
        path = Path(folder) / "m.gguf"
        write_trial_model(path, replace(shape, n_layers=_N_LAYERS), _TYPE, n_ctx_train=_N_CTX)
        for n_ctx in (planned_n_ctx(path, options.limit), AUTO_N_CTX):
            for moment in options.moments:
                for share in options.shares:
                    cell = run_cell(path, n_ctx=n_ctx, limit_bytes=options.limit, moment=moment, share=share)
                    rows.append({"asked_n_ctx": n_ctx, "moment": moment, "share": share} | cell)
                    if options.format == "json":
                        sys.stdout.write(json.dumps(rows[-1]) + "\n")
                        sys.stdout.flush()
    if options.format == "markdown":
        for n_ctx in dict.fromkeys(row["asked_n_ctx"] for row in rows):
            asked = "auto" if n_ctx == AUTO_N_CTX else f"{n_ctx:,}"
            table = markdown_table([row for row in rows if row["asked_n_ctx"] == n_ctx], name=_outcome)
            sys.stdout.write(f"n_ctx {asked}:\n\n{table}\n\n")
    kills = sum(row["kills"] for row in rows)
    sys.stderr.write(f"{len(rows)} cells, {kills} kills\n")
    return 0 if kills == 0 and all(row["outcome"] in ("ran", "refused") for row in rows) else 1


def _outcome(row: dict[str, Any]) -> str:
    return f"ran, {row['n_ctx']:,} tokens" if row["outcome"] == "ran" else str(row["outcome"])


if __name__ == "__main__":
    sys.exit(main())
