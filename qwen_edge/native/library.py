"""Loading llama.cpp once: import, log callback, build facts."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import hashlib
import importlib
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

from qwen_edge.device import cpu_features
from qwen_edge.device.hwcap import is_arm64
from qwen_edge.errors import NativeMissingError
from qwen_edge.native import builds, cpu_modules

# Source: ggml/include/ggml.h, enum ggml_log_level.
_LEVEL_NAMES = {1: "debug", 2: "info", 3: "warning", 4: "error"}
_LEVEL_CONTINUES = 5
# Source: the LLAMA_LOG_ERROR calls of src/llama.cpp and src/llama-model-loader.cpp.
_ON_THE_WAY = re.compile(r"^(?:(?:llama|gguf)_\w+: )?(?:error loading model(?: hyperparameters)?: )*")

_BINDINGS = ("llama_cpp", "llama_cpp._ctypes_extensions", "llama_cpp.llama_cpp")
_WITHOUT_COMPILER = 'Without a compiler: pip install "qwen-edge[onnx]" and a model exported to ONNX.'
_ON_ANOTHER_MACHINE = (
    "Or on a faster machine: qwen-edge setup --for aarch64 -o DIR, and here: qwen-edge setup --wheel FILE"
)

_lock = threading.Lock()
_log_lines: collections.deque[tuple[int, str]] = collections.deque(maxlen=200)


@functools.cache
def api() -> ModuleType:
    """Load llama.cpp and return its ctypes bindings (names as in llama.h).

    A program that has imported llama_cpp itself keeps its library, and this uses it too: two in one process would share
    one libggml, whichever came first.

    Raises:
        NativeMissingError: There is no build that serves here, or it does not load.
    """
    with _lock:
        build = builds.chosen_build()
        if build is None:
            raise _missing()
        try:
            with warnings.catch_warnings():
                # The package's own deprecations are not the user's business.
                warnings.simplefilter("ignore")
                bindings = sys.modules.get("llama_cpp.llama_cpp") or _import_bindings(build)
        except ModuleNotFoundError as error:
            raise NativeMissingError(
                f"the llama.cpp bindings in {build.package} need {error.name!r}, which is not installed",
                hint="Build them again: qwen-edge setup",
            ) from error
        except (OSError, RuntimeError, AttributeError) as error:
            raise NativeMissingError(
                f"llama.cpp's library in {build.library} does not load: {error}", hint=_reload_hint(build)
            ) from error
        builds.use(build)
        bindings.llama_log_set(_log_callback(bindings), ctypes.c_void_p(0))
        try:
            _load_module(bindings, build)
        except OSError as error:
            raise NativeMissingError(
                f"the kernels of llama.cpp in {build.library} do not load: {error}", hint=_reload_hint(build)
            ) from error
        bindings.llama_backend_init()
        return bindings


def _load_module(bindings: ModuleType, build: builds.Build) -> None:
    """Load the kernels where they are apart, before llama.cpp looks for them elsewhere.

    Raises:
        ConfigError, OSError: As cpu_modules.load_module.
    """
    global _level
    _level = cpu_modules.load_module(bindings, build.library, build.modules, cpu_features())


_level: str | None = None


def cpu_module() -> str | None:
    """Return the level of the kernels that were loaded; None where the library has one set of them."""
    api()
    return _level


def kernel_functions(bindings: Any) -> Any:
    """Return the library that has the functions of ggml-cpu.h.

    Args:
        bindings: What api() gave.
    """
    folder = library_folder()
    if _level is None or folder is None:
        return bindings._lib
    return ctypes.CDLL(str(cpu_modules.module_files(folder)[_level]))


def _import_bindings(build: builds.Build) -> ModuleType:
    """Import the ctypes bindings of a build under their own name, without the package around them.

    They know the names of libraries on some systems and refuse others, Android among them (sys.platform of Python 3.13
    there), which names them as Linux does.

    The package's __init__ brings its high-level API, with dependencies that are not needed here. The names are given
    back afterwards: a program that imports llama_cpp later gets its own.

    Raises:
        ModuleNotFoundError, OSError, RuntimeError, AttributeError: The bindings are incomplete, or the library does not
            load, or is of another version than the bindings.
    """
    # The bindings read it too, and take an empty one for the current folder.
    named = os.environ.pop("LLAMA_CPP_LIB_PATH", None)
    if build.origin == "LLAMA_CPP_LIB_PATH":
        os.environ["LLAMA_CPP_LIB_PATH"] = str(build.library)
    before = {name: sys.modules.pop(name) for name in _BINDINGS if name in sys.modules}
    parent = ModuleType("llama_cpp")
    parent.__path__ = [str(build.package)]
    sys.modules["llama_cpp"] = parent
    try:
        if sys.platform == "android":
            extensions: Any = importlib.import_module("llama_cpp._ctypes_extensions")
            extensions.load_shared_library = _load_shared_library
        return importlib.import_module("llama_cpp.llama_cpp")
    finally:
        for name in _BINDINGS:
            sys.modules.pop(name, None)
        sys.modules.update(before)
        os.environ.pop("LLAMA_CPP_LIB_PATH", None)
        if named is not None:
            os.environ["LLAMA_CPP_LIB_PATH"] = named


def _load_shared_library(name: str, folder: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(folder / f"lib{name}.so"))


def _missing() -> NativeMissingError:
    unfit = [f"{entry.build.package} is {entry.reason}" for entry in builds.unfit_builds()]
    if named := os.environ.get("LLAMA_CPP_LIB_PATH"):
        unfit.append(f"LLAMA_CPP_LIB_PATH={named} is a library without the Python bindings")
    elsewhere = f"\n  {_ON_ANOTHER_MACHINE}" if is_arm64() else ""
    return NativeMissingError(
        "the llama.cpp engine is not built yet on this machine" + "".join(f"\n  {line}" for line in unfit),
        hint=f"Build it for this CPU, once, in some minutes: qwen-edge setup{elsewhere}\n  {_WITHOUT_COMPILER}",
    )


def _reload_hint(build: builds.Build) -> str:
    if build.origin == "LLAMA_CPP_LIB_PATH":
        return (
            "LLAMA_CPP_LIB_PATH names it. Unset that, or set it to the folder of a libllama of this version."
        )
    return f"Build it here: qwen-edge setup{' --force' * (build.origin == 'setup')}\n  {_WITHOUT_COMPILER}"


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
    """Hold Ctrl-C, and a handler of SIGTERM, back while the block runs; then let them act.

    For native calls that log: Python would raise their exception inside the log callback, from where it cannot travel
    through C and is lost. Does nothing outside the main thread, or where the program handles SIGINT itself.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    came: list[int] = []
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for sent in dict.fromkeys(came):
            signal.raise_signal(sent)


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
    """Return the folder llama.cpp's libraries are loaded from, without loading them; None when there is no build."""
    build = builds.chosen_build()
    return build.library if build else None


def library_fingerprint() -> str:
    """Return a digest that changes when the library's files change (names, sizes, times); "" when there is none."""
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
    build = builds.chosen_build()
    facts: dict[str, Any] = {
        "package": "llama-cpp-python",
        "version": build.version if build else None,
        "flags": build.flags if build else None,
        "compiler": build.compiler if build else None,
    }
    if build and build.key:
        facts["key"] = build.key
    if build and build.kernels:
        facts["kernels"] = list(build.kernels)
    return facts


def system_info() -> str:
    """Return the instruction sets that the loaded library was built with (llama_print_system_info)."""
    text: bytes = api().llama_print_system_info()
    return text.decode("utf-8", "replace").strip()
