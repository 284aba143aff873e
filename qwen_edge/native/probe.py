"""Whether the native library survives a model on this machine, found out in a child process and remembered.

A build can crash at the first matrix product: instruction sets of another machine, or AMX code that GCC before 12.4
miscompiles. The child loads the file that the user wants, evaluates a batch (matrix-matrix kernels) and one token
(matrix-vector kernels). Which kernels run depends on the tensor types inside, so the verdict is kept per library build,
CPU and file; later loads pay nothing, and the first one finds the file in the page cache.

Run as `python -m qwen_edge.native.probe FILE fast|safe`, it is that child.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from qwen_edge import device, paths
from qwen_edge.errors import NativeCrashError
from qwen_edge.files import atomic_path
from qwen_edge.gguf_check import check_model_file
from qwen_edge.native import child, library

Kernels = Literal["fast", "safe"]

_PROBE_TOKENS = 64
_TIMEOUT_S = 600.0


class NativeFallbackWarning(UserWarning):
    """The native library's fast kernels crash on this machine; the plain ones are used."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which kernels are safe here.

    Attributes:
        kernels: "fast" (the library's own choice) or "safe" (no repacking, no AMX).
        crash: How the fast ones died, in words; "" when they did not.
    """

    kernels: Kernels
    crash: str = ""

    def warning(self) -> str:
        """Return what is lost and how to mend it; "" when nothing is lost."""
        if self.kernels == "fast":
            return ""
        return (
            f"the native library's fast kernels crash on this CPU ({self.crash}), so the plain ones are used: "
            "answers are as good, but slower, above all on long prompts. The usual cause: GCC 12.0 to 12.3 and 13.0 to "
            "13.2 miscompile the AMX kernels. To mend it, build the library with the flags that avoid that: qwen-edge setup"
        )


def known_verdict(path: Path) -> Verdict | None:
    """Return what an earlier probe() found for a file; None where there was none."""
    return _read_record(path)


def known_fallback() -> bool:
    """Return whether any file needed the plain kernels with this library on this CPU."""
    return _read_record(None) is not None


def probe(path: Path) -> Verdict:
    """Return which kernels are safe for a file; asks a child process the first time.

    Args:
        path: A GGUF file.

    Raises:
        GGUFError: The file is damaged in a way that the library does not survive.
        NativeCrashError: The library dies with the plain kernels too.
    """
    known = known_verdict(path)
    if known is not None:
        return known
    check_model_file(path)
    crash = _crash_of(path, "fast")
    verdict = Verdict("fast")
    if crash:
        safe_crash = _crash_of(path, "safe")
        if safe_crash:
            raise NativeCrashError(
                f"the native library dies on this machine, with its plain kernels too ({safe_crash})",
                hint="It was probably built for another CPU. Build it here: qwen-edge setup --force   What is wrong: "
                "qwen-edge doctor\n  If other models load, this file is damaged: download or convert it again.",
            )
        verdict = Verdict("safe", crash)
    _write_record(path, verdict)
    if verdict.kernels == "safe":
        _write_record(None, verdict)
    return verdict


def _crash_of(path: Path, kernels: Kernels) -> str:
    """Run one child; return how it died, or "" when it ended by itself (in success or with an error of its own)."""
    process = child.start_child("qwen_edge.native.probe", [str(path), kernels])
    # Exit codes above 0 are errors that the load in this process will meet and explain; a signal is a crash.
    return child.finish(process, _TIMEOUT_S)[2]


def _record_path(path: Path | None) -> Path:
    """Return where the verdict for a file is kept; None stands for any file."""
    identity = _file_identity(path) if path is not None else "any"
    facts = [library.library_fingerprint(), device.cpu_name(), *device.cpu_features(), identity]
    key = sha256("\n".join(facts).encode()).hexdigest()[:24]
    return paths.cache_root() / "probe" / f"{key}.json"


def _file_identity(path: Path) -> str:
    facts = path.stat()
    return f"{path.resolve()}:{facts.st_size}:{facts.st_mtime_ns}"


def _read_record(path: Path | None) -> Verdict | None:
    try:
        data = json.loads(_record_path(path).read_text())
        return Verdict(data["kernels"], data["crash"]) if data["kernels"] in ("fast", "safe") else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_record(path: Path | None, verdict: Verdict) -> None:
    try:
        with atomic_path(_record_path(path)) as part:
            part.write_text(json.dumps({"kernels": verdict.kernels, "crash": verdict.crash}))
    except OSError:
        return  # a cache that cannot be written costs a probe next time, nothing else


def _run_as_child(path: str, kernels: str) -> None:
    from qwen_edge.config import GREEDY, LoadConfig
    from qwen_edge.native.handles import NativeContext, NativeModel
    from qwen_edge.native.sampler import NativeSampler

    # Mapped: of a model that fits only so, a child that reads it would be killed, which looks like a crash.
    model = NativeModel(path, load_mode="mmap", safe_kernels=kernels == "safe")
    config = LoadConfig(n_ctx=2 * _PROBE_TOKENS, n_batch=_PROBE_TOKENS)
    context = NativeContext(model, config, device.usable_cores())
    context.append([i % model.n_vocab for i in range(_PROBE_TOKENS)])
    sampler = NativeSampler(model, GREEDY)
    context.append([sampler.sample(context)])
    sampler.close()
    model.close()


if __name__ == "__main__":
    _run_as_child(sys.argv[1], sys.argv[2])
