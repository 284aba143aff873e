"""Running a benchmark: each file in a process of its own, so that peak memory and load time are that file's."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from qwen_edge import device, errors, hub
from qwen_edge.bench.record import BenchRecord, FileResult
from qwen_edge.bench.workload import Workload
from qwen_edge.config import LoadConfig, Switch
from qwen_edge.digests import file_digest
from qwen_edge.engines.onnx_folder import model_files
from qwen_edge.errors import ConfigError, NativeCrashError, QwenEdgeError
from qwen_edge.native import child, library

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """What to measure and how.

    Attributes:
        workload: Tokens to read and write.
        repetitions: Measured rounds, after one to warm up.
        n_threads: CPU threads; None takes the physical cores this process may use.
        n_ctx: Context to allocate, in tokens; None takes what the workload needs, rounded up to a multiple of 256.
        flash_attention: "on" or "off".
    """

    workload: Workload = field(default_factory=Workload)
    repetitions: int = 5
    n_threads: int | None = None
    n_ctx: int | None = None
    flash_attention: Switch = "off"

    def __post_init__(self) -> None:
        if self.repetitions < 1:
            raise ConfigError(f"repetitions must be at least 1 (not {self.repetitions})")
        if self.n_ctx is not None and self.n_ctx < self.workload.needed_n_ctx:
            raise ConfigError(
                f"the workload needs a context of {self.workload.needed_n_ctx} tokens and n_ctx is {self.n_ctx}",
                hint="Leave n_ctx out to get what is needed, or take a smaller prompt, reply or depth.",
            )
        assert self.load_config, "Bug: LoadConfig checks the rest when it is made"

    @property
    def load_config(self) -> LoadConfig:
        """How the file is loaded."""
        return LoadConfig(
            n_ctx=self.n_ctx or self.workload.rounded_n_ctx,
            n_threads=self.n_threads,
            flash_attention=self.flash_attention,
        )


def run_benchmark(
    files: Sequence[str | os.PathLike[str]],
    config: BenchConfig | None = None,
    *,
    progress: Progress = lambda file, done, total: None,
) -> BenchRecord:
    """Measure speed, load time and memory of model files, one after the other.

    Args:
        files: GGUF files, exported ONNX folders, or names of models in the catalog that are here already.
        config: What to measure.
        progress: Called with (file, rounds done, rounds in all).

    Raises:
        ConfigError: No files.
        ModelNotFoundError: A file is not there; found before anything is measured.
        GGUFError, NativeError: A file does not load, or the native library dies with it.
    """
    config = config or BenchConfig()
    if not files:
        raise ConfigError("no files to measure")
    located = [(os.fspath(file), hub.locate(file)) for file in files]
    parts = {path: model_files(path) for _, path in located}
    warnings: list[str] = []
    results = []
    for name, path in located:
        report = _measure_in_child(
            path,
            config,
            lambda done, total, name=name: progress(name, done, total),  # type: ignore[misc]
        )
        warnings += [text for text in report.pop("warnings") if text not in warnings]
        machine_facts = report.pop("native")
        results.append(
            FileResult.from_dict(
                {
                    "file": name,
                    "sha256": file_digest(parts[path][-1]),
                    "size_bytes": sum(part.stat().st_size for part in parts[path]),
                    **report,
                }
            )
        )
    machine = {**device.describe_machine(), "native": {**library.build_facts(), **machine_facts}}
    return BenchRecord(machine=machine, results=tuple(results), warnings=tuple(warnings))


def _measure_in_child(
    path: Path, config: BenchConfig, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Return what bench.worker reports of a file.

    Raises:
        QwenEdgeError: The child's own error, or NativeCrashError when it died.
    """
    order = {
        "file": str(path),
        "workload": config.workload.to_dict(),
        "repetitions": config.repetitions,
        "n_ctx": config.load_config.n_ctx,
        "n_threads": config.n_threads,
        "flash_attention": config.flash_attention,
    }
    report: dict[str, Any] | None = None
    error: QwenEdgeError | None = None
    with _running_child("qwen_edge.bench.worker", json.dumps(order)) as (process, log):
        assert process.stdout is not None, "Bug: start_child makes pipes"
        for line in process.stdout:
            message = json.loads(line)
            if "progress" in message:
                progress(*message["progress"])
            elif "error" in message:
                error = _error_of(message["error"])
            else:
                report = message["report"]
        code = process.wait()
    if error is not None:
        raise error
    if report is None or code != 0:
        last_line = (log[-1:] or ["nothing on stderr"])[0].strip()
        raise NativeCrashError(
            f"the process that measured {path} ended with {child.describe_exit(code)}: {last_line}",
            hint="The kernel's out-of-memory killer sends SIGKILL; a build for another CPU dies of SIGILL or SIGSEGV.",
        )
    return report


@contextlib.contextmanager
def _running_child(module: str, argument: str) -> Iterator[tuple[Popen[str], list[str]]]:
    """Run a child for the length of the block; yields it and the list its stderr is collected in."""
    process = child.start_child(module, [argument])
    log: list[str] = []
    # Read all the time: a full pipe would stop the child.
    reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        yield process, log
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _error_of(data: dict[str, Any]) -> QwenEdgeError:
    kind = getattr(errors, data["kind"], QwenEdgeError)
    error: QwenEdgeError = kind(data["message"], hint=data["hint"])
    return error
