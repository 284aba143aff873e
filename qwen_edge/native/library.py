"""Loading llama.cpp once: import, log callback, build facts."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from qwen_edge.errors import NativeMissingError

# Source: ggml/include/ggml.h, enum ggml_log_level.
_LEVEL_NAMES = {1: "debug", 2: "info", 3: "warning", 4: "error"}
_LEVEL_CONTINUES = 5
# Source: the LLAMA_LOG_ERROR calls of src/llama.cpp and src/llama-model-loader.cpp.
_ON_THE_WAY = re.compile(r"^(?:(?:llama|gguf)_\w+: )?(?:error loading model(?: hyperparameters)?: )*")

_lock = threading.Lock()
_log_lines: collections.deque[tuple[int, str]] = collections.deque(maxlen=200)


@functools.cache
def api() -> ModuleType:
    """Load llama.cpp and return its ctypes bindings (names as in llama.h).

    Raises:
        NativeMissingError: llama-cpp-python is not installed, or its library does not load.
    """
    with _lock:
        try:
            with warnings.catch_warnings():
                # The package's own deprecations are not the user's business.
                warnings.simplefilter("ignore")
                import llama_cpp.llama_cpp as bindings
        except ModuleNotFoundError as error:
            raise NativeMissingError(
                f"the llama.cpp engine needs {error.name!r}, which is not installed",
                hint='In a checkout run: make setup   Elsewhere: pip install "qwen-edge[llama]" (compiles about 4 minutes). '
                'Without a compiler: pip install "qwen-edge[onnx]" and a model exported to ONNX.',
            ) from error
        except (OSError, RuntimeError) as error:
            raise NativeMissingError(
                f"llama-cpp-python is installed, but its library does not load: {error}",
                hint="It was built for another machine or is incomplete: build it again (make setup).",
            ) from error
        bindings.llama_log_set(_log_callback(bindings), ctypes.c_void_p(0))
        bindings.llama_backend_init()
        module: ModuleType = bindings
        return module


def _log_callback(bindings: ModuleType) -> Any:
    """Return the native log callback; kept referenced by the module for as long as the library may call it."""
    global _kept_callback
    echo = os.environ.get("QWEN_EDGE_NATIVE_LOG") == "1"
    last_level = 2

    def on_log(level: int, text: bytes, _: int) -> None:
        nonlocal last_level
        try:
            last_level = last_level if level == _LEVEL_CONTINUES else level
            line = text.decode("utf-8", "replace")
            _log_lines.append((last_level, line))
            if echo:
                sys.stderr.write(line)
        except Exception:
            # An exception must not travel through C; a lost log line harms nobody.
            return

    _kept_callback = bindings.llama_log_callback(on_log)
    return _kept_callback


_kept_callback: Any = None


@contextlib.contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Hold KeyboardInterrupt back while the block runs, then raise it.

    For native calls that log: Python would raise it inside the log callback, from where it cannot travel through C
    and is lost. Does nothing outside the main thread, or where the program handles SIGINT itself.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def remember(number: int, frame: object) -> None:
        nonlocal came
        came = True

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            raise KeyboardInterrupt


def clear_log() -> None:
    """Forget what the library has logged so far."""
    _log_lines.clear()


def last_errors(count: int = 3) -> str:
    """Return the last warnings and errors that the library logged, on one line; "" when there are none."""
    lines = [line.strip() for level, line in _log_lines if level >= 3 and line.strip()]
    return "; ".join(lines[-count:])


def last_reason() -> str:
    """Return why loading a model failed, as the library says it, without the functions that it names on the way."""
    lines = [_ON_THE_WAY.sub("", line) for line in last_errors().split("; ")]
    return (
        "; ".join(line for line in lines if line and "failed to load model" not in line) or "no reason given"
    )


def library_folder() -> Path | None:
    """Return the folder llama.cpp's libraries are loaded from, without loading them; None when not installed."""
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    if override:
        return Path(override)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "lib"


def library_fingerprint() -> str:
    """Return a digest that changes when the library's files change (names, sizes, times); "" when not installed."""
    folder = library_folder()
    if folder is None or not folder.is_dir():
        return ""
    facts = [
        f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}"
        for file in sorted(folder.iterdir())
        if file.is_file()
    ]
    return hashlib.sha256("\n".join([str(folder.resolve()), *facts]).encode()).hexdigest()[:16]


def build_facts() -> dict[str, Any]:
    """Return what is known of the library's build without loading it: package version, flags and compiler."""
    facts: dict[str, Any] = {
        "package": "llama-cpp-python",
        "version": _package_version(),
        "flags": None,
        "compiler": None,
    }
    folder = library_folder()
    if folder is not None:
        try:
            recorded = json.loads((folder.parent / "qwen_edge_build.json").read_text())
            facts.update({key: recorded[key] for key in ("flags", "compiler", "key") if key in recorded})
        except (OSError, ValueError):
            pass  # not built by `make setup`: nothing is known of its flags
    return facts


def system_info() -> str:
    """Return the instruction sets that the loaded library was built with (llama_print_system_info)."""
    text: bytes = api().llama_print_system_info()
    return text.decode("utf-8", "replace").strip()


def _package_version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return None
