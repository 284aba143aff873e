"""llama.cpp's quantizer in a child process: it cannot be cancelled, and its failures may be crashes.

Run as `python -m qwen_edge.native.quantizer JOB`, it is that child: JOB is a JSON object, the answer is one JSON
object a line on stdout (`tensor`, `fallback`, `needs_imatrix`, at the end `done` or `error`). What becomes of each
tensor is read from the quantizer's log, which is the only place where it says so.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge import device, errors
from qwen_edge.errors import NativeCrashError, NativeError, QwenEdgeError
from qwen_edge.native import child, library

# Rows held in memory at once, in three forms (as read, as float32, quantized). llama.cpp's own default of 8 GiB
# takes whole tensors. Measured on 0.5B weights, to Q4_0: 795 MB and 5.4 s so, 228 MB and 3.9 s with 64 MiB, 225 MB
# with 16 MiB; the bytes written are the same.
_MAX_BUFFER_BYTES = 64 << 20

_PARENT_CHECK_S = 0.2

# Source: src/llama-quant.cpp, the LLAMA_LOG_ calls of llama_model_quantize_impl and tensor_type_fallback.
_TENSOR_LINE = re.compile(r"^\[ *\d+/ *\d+\] (?P<name>\S+) .*, type = *(?P<type>\S+), (?P<action>.*)$")
_NEW_TYPE = re.compile(r"^converting to (\S+) \.\. |-> .* MiB \((\S+)\)$")
_FALLBACK_LINE = re.compile(
    r"^warning: (?P<name>\S+) .*\(required for type +(?P<wanted>\S+)\).* -> falling back to +(?P<used>\S+)$"
)
_IMATRIX_LINE = "will require an imatrix"
# The line of the tensor that failed is open when this is logged.
_FAILURE = re.compile(r"llama_model_quantize: failed to quantize: (.*)$")


@dataclass(frozen=True, slots=True)
class Fallback:
    """A tensor whose rows do not divide into the blocks of the type it was meant to have.

    Attributes:
        tensor: Its name in the file.
        wanted: The type it was meant to have.
        used: The type it has.
    """

    tensor: str
    wanted: str
    used: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the quantizer did, or would do.

    Attributes:
        tensor_types: Type of each tensor of the new file, by name, as in TENSOR_TYPES.
        fallbacks: Tensors that could not have their type.
        needs_imatrix: Whether the real run would be refused without an importance matrix; told by dry runs only.
        peak_memory_bytes: Largest resident size of the child, the mapped pages of the source included.
    """

    tensor_types: dict[str, str]
    fallbacks: tuple[Fallback, ...]
    needs_imatrix: bool
    peak_memory_bytes: int


def run_quantizer(
    source: Path,
    target: Path | None,
    ftype: int,
    *,
    n_threads: int,
    pure: bool = False,
    on_tensor: Callable[[str], None] | None = None,
) -> Outcome:
    """Quantize in a child process. An exception in this process, Ctrl-C included, kills the child.

    A tensor that is quantized already is quantized again where its type changes: asking is the caller's part.

    Args:
        source: A GGUF file in one part.
        target: The file to write, in place and not atomically; None only asks what would be done.
        ftype: Value of `enum llama_ftype`.
        n_threads: CPU threads.
        pure: One type for all matrices instead of the mixture.
        on_tensor: Called with the name of each tensor that is done.

    Raises:
        NativeMissingError: llama.cpp is not built here, or does not load.
        NativeError: The quantizer refused or failed; the message is its own.
        NativeCrashError: The child died.
    """
    job = {
        "source": str(source),
        "target": str(target) if target else None,
        "ftype": ftype,
        "n_threads": n_threads,
        "pure": pure,
        "parent": os.getpid(),
    }
    tensor_types: dict[str, str] = {}
    fallbacks: list[Fallback] = []
    needs_imatrix = False
    with child.start_child("qwen_edge.native.quantizer", [json.dumps(job)]) as process:
        try:
            for event in _events(process):
                match event:
                    case {"tensor": name, "type": type_name}:
                        tensor_types[name] = type_name
                        if on_tensor:
                            on_tensor(name)
                    case {"fallback": name, "wanted": wanted, "used": used}:
                        fallbacks.append(Fallback(name, wanted, used))
                    case {"needs_imatrix": True}:
                        needs_imatrix = True
                    case {"done": True, "peak_memory_bytes": peak}:
                        return Outcome(tensor_types, tuple(fallbacks), needs_imatrix, peak)
                    case {"error": message, "kind": kind, "hint": hint}:
                        raise getattr(errors, kind)(message, hint=hint)
            raise _crash_error(process, source)
        except BaseException:
            process.kill()
            raise


def _events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None, "Bug: the child has no stdout pipe"
    for line in process.stdout:
        if line.startswith("{"):
            yield json.loads(line)


def _crash_error(process: subprocess.Popen[str], source: Path) -> NativeCrashError:
    _, stderr = process.communicate()
    last_words = stderr.strip().splitlines()[-1:]
    ending = child.describe_exit(process.returncode)
    return NativeCrashError(
        f"the quantizer died on {source} ({'; '.join([ending, *last_words])}); nothing was written",
        hint="SIGKILL usually means that memory ran out; close other programs and run it again. After another signal "
        "check the source file, then build the library again: qwen-edge setup --force",
    )


# The child


class _LogReader:
    """Puts the fragments that llama.cpp logs together to lines, and tells what they mean."""

    def __init__(self, emit: Callable[[dict[str, Any]], None]) -> None:
        self.failure = ""
        self._emit = emit
        self._line = ""

    def feed(self, text: str) -> None:
        *complete, self._line = (self._line + text).split("\n")
        for line in complete:
            self._read(line)

    def _read(self, line: str) -> None:
        if found := _FAILURE.search(line):
            self.failure = found[1]
        elif found := _TENSOR_LINE.match(line):
            new_type = _NEW_TYPE.search(found["action"])
            type_name = (new_type[1] or new_type[2]) if new_type else found["type"]
            self._emit({"tensor": found["name"], "type": type_name.upper()})
        elif found := _FALLBACK_LINE.match(line):
            self._emit(
                {"fallback": found["name"], "wanted": found["wanted"].upper(), "used": found["used"].upper()}
            )
        elif _IMATRIX_LINE in line:
            self._emit({"needs_imatrix": True})


def _emit(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _die_with_parent(parent: int, part: str | None) -> None:
    """End this process, and what it has written, when its parent is gone: nobody would rename the file."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    if part:
        Path(part).unlink(missing_ok=True)
    os._exit(1)


def _run_as_child(job: dict[str, Any]) -> None:
    # Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.name == "posix":
        # Windows reuses the ids of dead parents and never changes getppid().
        threading.Thread(target=_die_with_parent, args=(job["parent"], job["target"]), daemon=True).start()
    try:
        _quantize(job)
    except QwenEdgeError as error:
        _emit({"error": error.message, "kind": type(error).__name__, "hint": error.hint})
        return
    _emit({"done": True, "peak_memory_bytes": device.peak_memory_bytes()})


def _quantize(job: dict[str, Any]) -> None:
    api = library.api()
    reader = _LogReader(_emit)

    def on_log(level: int, text: bytes, _: int) -> None:
        try:
            reader.feed(text.decode("utf-8", "replace"))
        except Exception:
            # An exception must not travel through C. A closed pipe means that the parent is going away.
            return

    callback = api.llama_log_callback(on_log)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    params = api.llama_model_quantize_default_params()
    params.ftype = job["ftype"]
    params.nthread = job["n_threads"]
    params.pure = job["pure"]
    params.allow_requantize = True
    params.dry_run = job["target"] is None
    params.max_buf_size = _MAX_BUFFER_BYTES
    target = os.fsencode(job["target"] or "")
    code = api.llama_model_quantize(os.fsencode(job["source"]), target, ctypes.byref(params))
    if code != 0:
        raise NativeError(
            f"llama.cpp cannot quantize {job['source']}: {reader.failure or f'code {code}'}",
            hint="Its header is whole. Fetch or convert it again; if a fresh file does the same, please report it.",
        )


if __name__ == "__main__":
    _run_as_child(json.loads(sys.argv[1]))
