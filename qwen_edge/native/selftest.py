"""Whether a build of the native library computes: models of random weights, evaluated with fast and with plain kernels.

Each child evaluates the same tokens as one batch (matrix-matrix kernels) and one by one (matrix-vector kernels), for one
tensor type after the other. A build is right when it survives, gives numbers, and all ways agree.

Run as `python -m qwen_edge.native.selftest FOLDER fast|safe FILE...`, it is that child.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge.catalog_types import Shape
from qwen_edge.native import child
from qwen_edge.native.builds import Build
from qwen_edge.native.probe import Kernels

# Rows of many blocks, as real models have: llama.cpp's AMX kernels compute nonsense for Q8_0 rows of one block of 32.
SELFTEST_SHAPE = Shape(
    n_layers=2,
    hidden_size=512,
    ffn_size=1024,
    n_heads=4,
    n_kv_heads=2,
    head_dim=128,
    vocab_size=512,
    is_tied=True,
    has_qk_norm=True,
)
SELFTEST_TYPES = ("Q4_0", "Q8_0", "Q4_K_M", "F32")

# More than a tile of rows and less than two: full tiles and the rest are both run.
_N_TOKENS = 25

# How far two right ways may be apart, as a part of the logits' root mean square.
# Kernels round their inputs to 8 bits, in blocks of 32 or 256. The largest of 256 normal values is about 2.9 sigma, so
# a step is 2.9 / 127 sigma, and rounding is an error of step / sqrt(12) = 0.66%. Two ways may round differently
# throughout: 0.66% * sqrt(2) a product. A token passes 4 products a layer and the head, 9 in all, whose errors add as
# squares: 0.66% * sqrt(2 * 9) = 2.8%. Twice that leaves room for what the nonlinear parts amplify.
# Seen with right builds, AMX and without, all types of SELFTEST_TYPES: at most 1.9%. Wrong kernels differ by 30% and more.
AGREEMENT_BOUND = 0.056


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeOutcome:
    """What became of one type with one kind of kernels.

    Attributes:
        type_name: One of SELFTEST_TYPES.
        kernels: "fast" or "safe".
        crash: How the child died, "" when it did not.
        error: What it said when it ended in an error of its own, else "".
        is_finite: Whether all logits are numbers; None without logits.
        difference: Root mean square of the difference from plain kernels one by one, as a part of the logits'; None
            where either has no finite logits.
    """

    type_name: str
    kernels: Kernels
    crash: str = ""
    error: str = ""
    is_finite: bool | None = None
    difference: float | None = None

    @property
    def is_right(self) -> bool:
        """Whether it computed what it should, as far as could be compared."""
        return self.is_finite is True and (self.difference is None or self.difference <= AGREEMENT_BOUND)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """What became of a build.

    Attributes:
        system_info: What the library says it was built with (llama_print_system_info); "" when it did not come so far.
        outcomes: One for each type and kind of kernels.
    """

    system_info: str
    outcomes: tuple[TypeOutcome, ...]

    def failures(self, kernels: Kernels) -> tuple[TypeOutcome, ...]:
        """Return what went wrong with one kind of kernels."""
        return tuple(
            outcome for outcome in self.outcomes if outcome.kernels == kernels and not outcome.is_right
        )


def run_selftest(
    files: Mapping[str, Path], folder: Path, *, build: Build | None = None, timeout_s: float = 90.0
) -> SelfTest:
    """Evaluate each file in children; never fails because of what the library does.

    Args:
        files: GGUF files by the name of their type.
        folder: Where logits are put for a moment.
        build: What to try; None for what this process uses.
        timeout_s: For all of it; what does not answer until then counts as crashed.
    """
    ends = time.monotonic() + timeout_s
    found: dict[tuple[Kernels, str], TypeOutcome] = {}
    infos: list[str] = []
    kinds: tuple[Kernels, Kernels] = ("safe", "fast")
    for kernels in kinds:
        waiting = dict(files)
        while waiting:
            left_s = max(0.0, ends - time.monotonic())
            outcomes, info = _run_child(waiting, folder, kernels, build, left_s)
            infos.append(info)
            for outcome in outcomes:
                found[kernels, outcome.type_name] = outcome
                del waiting[outcome.type_name]
    compared = tuple(
        _compare(outcome, folder) if outcome.is_finite else outcome for outcome in found.values()
    )
    return SelfTest(system_info=next(filter(None, infos), ""), outcomes=compared)


def _run_child(
    files: Mapping[str, Path], folder: Path, kernels: Kernels, build: Build | None, timeout_s: float
) -> tuple[list[TypeOutcome], str]:
    """Run one child; return what became of the files it came to, at least one, and what the library says of itself."""
    process = child.start_child(
        "qwen_edge.native.selftest", [str(folder), kernels, *map(str, files.values())], build=build
    )
    stdout, stderr, crash = child.finish(process, timeout_s)
    lines = child.json_lines(stdout)
    info = next((str(line["system_info"]) for line in lines if "system_info" in line), "")
    done = {line["done"]: line for line in lines if "done" in line}
    outcomes = [
        TypeOutcome(type_name=name, kernels=kernels, is_finite=done[str(path)]["is_finite"])
        for name, path in files.items()
        if str(path) in done
    ]
    left = [name for name in files if str(files[name]) not in done]
    if left:
        error = "" if crash else child.last_line(stderr) or f"ended with exit code {process.returncode}"
        # Without a word from the library it did not even load, and will not for the next type.
        lost = left[:1] if info else left
        outcomes += [TypeOutcome(type_name=name, kernels=kernels, crash=crash, error=error) for name in lost]
    return outcomes, info


def _compare(outcome: TypeOutcome, folder: Path) -> TypeOutcome:
    """Return an outcome with its distance from the plain kernels, which evaluated one token after the other."""
    reference_file = folder / f"safe-{outcome.type_name}.npy"
    if not reference_file.is_file():
        return outcome
    reference = np.load(reference_file)[1].astype(np.float64)
    if not np.isfinite(reference).all():
        return outcome
    ways = np.load(folder / f"{outcome.kernels}-{outcome.type_name}.npy").astype(np.float64)
    scale = np.sqrt(np.mean(reference**2))
    apart = max(float(np.sqrt(np.mean((way - reference) ** 2))) for way in ways)
    return replace(outcome, difference=apart / float(scale) if scale else float("inf"))


def _logits(path: Path, kernels: Kernels) -> NDArray[np.float32]:
    """Return float32 [2, tokens, n_vocab]: as one batch, and one by one."""
    from qwen_edge import device
    from qwen_edge.config import LoadConfig
    from qwen_edge.native.handles import NativeContext, NativeModel

    model = NativeModel(path, safe_kernels=kernels == "safe")
    tokens = [(7 * i + 3) % model.n_vocab for i in range(_N_TOKENS)]
    config = LoadConfig(n_ctx=256, n_batch=_N_TOKENS)
    logits = np.empty((2, _N_TOKENS, model.n_vocab), np.float32)
    # Two threads, for what goes wrong between them; one for the many short calls: on a busy machine threads wait for
    # each other, and those calls would take half a minute.
    batch = NativeContext(model, config, min(2, device.usable_cores()), logits_for_all=True)
    batch.append(tokens)
    batch.copy_logits(logits[0])
    single = NativeContext(model, config, 1, logits_for_all=True)
    for i, token in enumerate(tokens):
        single.append([token])
        single.copy_logits(logits[1, i : i + 1])
    model.close()
    return logits


def _run_as_child(folder: Path, kernels: Kernels, files: list[Path]) -> None:
    from qwen_edge.native import library

    _say(system_info=library.system_info())
    for file in files:
        logits = _logits(file, kernels)
        np.save(folder / f"{kernels}-{file.stem}.npy", logits)
        _say(done=str(file), is_finite=bool(np.isfinite(logits).all()))


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    _run_as_child(Path(sys.argv[1]), "safe" if sys.argv[2] == "safe" else "fast", [*map(Path, sys.argv[3:])])
