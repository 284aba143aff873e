"""The children that measure: one for each way to hold the weights, as many at once as there is memory for."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qwen_edge import device
from qwen_edge.config import LoadConfig
from qwen_edge.engines.onnx_folder import is_onnx
from qwen_edge.native import child
from qwen_edge.native.builds import Build
from qwen_edge.tune.worker import Job
from qwen_edge.tuned import Settings

_log = logging.getLogger(__name__)

_TIMEOUT_S = 300.0


class Trials:
    """Takes samples in children; to be closed."""

    def __init__(
        self, path: Path, need_bytes: Callable[[LoadConfig], int | None], *, build: Build | None = None
    ) -> None:
        """Prepare.

        Args:
            path: A GGUF file, or an exported folder.
            need_bytes: What a child will need under settings; None where that is not known.
            build: Native library that the children use; None for the one that this process uses.
        """
        self._path, self._need_bytes, self._build = path, need_bytes, build
        self._is_onnx = is_onnx(path)
        self._folder = tempfile.TemporaryDirectory(prefix="qwen-edge-tune-")
        self._children: dict[Settings, subprocess.Popen[str]] = {}
        self.errors: dict[Settings, str] = {}
        """Why settings could not be measured."""

    def sample(self, job: Job) -> float | None:
        """Return the seconds a token; None where the settings do not work here (see `errors`)."""
        group = self.group_of(job.settings)
        running = self._children.get(group)
        if running is None:
            running = self._start(group, job)
            if running is None:
                return None
        answer = _ask(running, job)
        if "token_s" in answer:
            return float(answer["token_s"])
        self.errors[job.settings] = str(answer.get("error"))
        _log.debug("%s: %s", job.settings, answer)
        if running.poll() is not None:
            self._end(group)
        return None

    def group_of(self, settings: Settings) -> Settings:
        """Return what settings have in common that one child measures without loading the model again."""
        return replace(
            Settings(n_threads=settings.n_threads if self._is_onnx else 1),
            load_mode=settings.load_mode,
            safe_kernels=settings.safe_kernels,
        )

    def _start(self, group: Settings, job: Job) -> subprocess.Popen[str] | None:
        """Start the child of a group where there is memory for it, if need be in place of others."""
        need = self._need_bytes(job.load_config()) or 0
        while need > device.available_memory_bytes().available_bytes and self._children:
            self._end(next(iter(self._children)))
        free = device.available_memory_bytes()
        if need > free.available_bytes:
            self.errors[job.settings] = (
                f"needs {need / 1e9:.2f} GB, {free.available_bytes / 1e9:.2f} GB are free"
            )
            return None
        self._children[group] = child.start_child(
            "qwen_edge.tune.worker", [str(self._path), self._folder.name], build=self._build, is_asked=True
        )
        return self._children[group]

    def _end(self, group: Settings) -> None:
        running = self._children.pop(group)
        running.kill()
        with contextlib.suppress(OSError):  # what was to be written to it
            running.communicate()

    def close(self) -> None:
        """End the children and remove what they left."""
        for group in list(self._children):
            self._end(group)
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ask(running: subprocess.Popen[str], job: Job) -> dict[str, Any]:
    """Return a child's answer; an error in its place where it died or is silent."""
    assert running.stdin is not None, "Bug: it was started to be asked"
    assert running.stdout is not None, "Bug: it was started to be asked"
    with child.killed_after(running, _TIMEOUT_S):
        try:
            running.stdin.write(job.to_json() + "\n")
            running.stdin.flush()
            line = running.stdout.readline()
        except OSError:
            line = ""
    for answer in child.json_lines(line):
        return answer
    code = running.wait()
    assert running.stderr is not None, "Bug: its stderr is a pipe"
    said = child.last_line(running.stderr.read())
    return {"error": f"the child that measures ended with {child.describe_exit(code)}. {said}".strip()}
