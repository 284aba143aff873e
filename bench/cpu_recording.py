"""Making a record: files are evaluated in a child process, which is started again where the native library dies."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qwen_edge import device
from qwen_edge.bench.cpu_record import CpuRecord, Run
from qwen_edge.bench.cpu_worker import kinds_of_kernels
from qwen_edge.errors import ConfigError
from qwen_edge.native import child, library

# 18 positions and 21 or more: kernels take 4, 8 or 16 at a time, and leave a rest. Few, for the sake of emulators.
PROMPTS = (
    "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a haiku: der Fluss, 北京.<|im_end|>\n<|im_start|>assistant\n",
)
N_STEPS = 12
# Under emulation a small model takes minutes.
_PATIENCE_S = 6 * 3600.0


def record(
    files: Sequence[Path],
    label: str | None = None,
    *,
    prompts: Sequence[str] = PROMPTS,
    n_steps: int = N_STEPS,
    kinds: Sequence[str] = ("fast", "plain"),
    settings: dict[str, Any] | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> CpuRecord:
    """Evaluate files on this machine.

    Args:
        files: GGUF files and exported folders.
        label: What the CPU is called; None takes its name.
        prompts: Text; control tokens are read as such.
        n_steps: Tokens that each prompt is continued by.
        kinds: Of kernels.
        settings: Of load(): n_threads, kv_type, flash_attention.
        announce: Is told each run before it begins.

    Raises:
        ConfigError: Two files have one name, which finds a file's like in another record.
    """
    names = [path.name for path in files]
    if len(set(names)) < len(names):
        raise ConfigError(
            "two files have the same name", hint="Rename one, or make a record for each of them."
        )
    order = {"prompts": list(prompts), "n_steps": n_steps, "settings": settings or {}}
    waiting = {
        index: (str(path), kernels)
        for index, (path, kernels) in enumerate(
            (path, kernels) for path in files for kernels in kinds_of_kernels(path) if kernels in kinds
        )
    }
    runs: dict[int, Run] = {}
    failures: list[str] = []
    loaded: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting:
            for file, kernels in waiting.values():
                announce(f"{Path(file).name}, {kernels} kernels")
            said, crash = _run_child({**order, "folder": folder, "runs": list(waiting.items())})
            for line in said:
                loaded.update(line.get("native", {}))
                if "done" in line:
                    file, kernels = waiting.pop(line["done"])
                    if "error" in line:
                        failures.append(f"{Path(file).name}, {kernels} kernels: {line['error']}")
                    else:
                        runs[line["done"]] = Run.load(Path(folder) / f"{line['done']}.npz")
            if waiting:
                file, kernels = waiting.pop(min(waiting))
                failures.append(f"{Path(file).name}, {kernels} kernels: the process ended with {crash}")
    machine = device.describe_machine()
    native = {**library.build_facts(), **loaded}
    return CpuRecord(
        label=label or machine["cpu"],
        machine={**machine, "native": native},
        runs=tuple(runs[index] for index in sorted(runs)),
        failures=tuple(failures),
    )


def _run_child(order: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Run one child; return the lines that it said, and how it ended where it left something."""
    process = child.start_child("qwen_edge.bench.cpu_worker", [json.dumps(order)])
    stdout, stderr, crash = child.finish(process, _PATIENCE_S)
    ended = crash or child.describe_exit(process.returncode)
    return child.json_lines(stdout), f"{ended}: {child.last_line(stderr)}"
