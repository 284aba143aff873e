"""CPU modules: the kernels of a portable build, compiled once for each level of the processor, of which one is loaded.

llama.cpp looks for such modules beside the executable, which is Python's, and in the current folder, which is anybody's.
Here the one that fits is chosen by what the processor has and loaded by its path. Which levels there are stands in the
facts of the build; a library of other origin chooses by itself, in its own folder.

QWEN_EDGE_CPU_MODULE names another one, to compare them.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType

from qwen_edge.errors import ConfigError, NativeError

VARIABLE = "QWEN_EDGE_CPU_MODULE"

_PATTERNS = ("libggml-cpu-*.so", "ggml-cpu-*.dll")

ARM_MODULES: dict[str, tuple[str, ...]] = {
    "armv8.0_1": (),
    "armv8.2_1": ("asimddp",),
    "armv8.2_2": ("asimddp", "asimdhp"),
    "armv8.2_3": ("asimddp", "asimdhp", "sve"),
    "armv8.6_0": ("asimddp", "asimdhp", "i8mm"),
    "armv8.6_1": ("asimddp", "asimdhp", "sve", "i8mm"),
    "armv8.6_2": ("asimddp", "asimdhp", "sve", "i8mm", "sve2"),
}
"""Levels of ARM processors that a portable build has kernels for, weakest first, with what each needs of
/proc/cpuinfo's features. Source: ggml/src/CMakeLists.txt of llama.cpp, ggml_add_cpu_backend_variant; armv8.6_0 is added
here: phones and laptops whose cores have i8mm and whose system leaves SVE off are common, and would go without i8mm.
The two levels with SME are left out: llama.cpp uses it through KleidiAI only, and GCC before 14 does not know it."""

# How llama.cpp's build calls these features. Source: ggml_add_cpu_backend_variant_impl in ggml/src/ggml-cpu/CMakeLists.txt.
_CMAKE_NAMES = {
    "asimddp": "DOTPROD", "asimdhp": "FP16_VECTOR_ARITHMETIC", "sve": "SVE", "i8mm": "MATMUL_INT8", "sve2": "SVE2",
}  # fmt: skip
_LISTED = re.compile(r"(?:^ *ggml_add_cpu_backend_variant\(armv\d[^\n]*\n)+", re.MULTILINE)


def list_modules(source: Path, modules: Mapping[str, Collection[str]]) -> None:
    """Put levels into llama.cpp's own list of them, in a source tree that is ours alone.

    Args:
        source: Of llama-cpp-python.
        modules: Level to what it needs.

    Raises:
        NativeError: This llama.cpp has no such list.
        OSError: The tree cannot be read or written.
    """
    file = source / "vendor/llama.cpp/ggml/src/CMakeLists.txt"
    text = file.read_text()
    lines = "".join(
        f"            ggml_add_cpu_backend_variant({' '.join([name, *(_CMAKE_NAMES[need] for need in needs)])})\n"
        for name, needs in modules.items()
    )
    changed, n_lists = _LISTED.subn(lines, text, count=1)
    if not n_lists:
        raise NativeError(
            f"{file.name} of this llama.cpp lists no levels of ARM processors",
            hint="Build on the device itself: qwen-edge setup",
        )
    if changed != text:
        file.write_text(changed)


def module_files(folder: Path) -> dict[str, Path]:
    """Return the modules in a library's folder by their level; {} for a build with one set of kernels."""
    found = {}
    for pattern in _PATTERNS:
        for file in sorted(folder.glob(pattern)):
            found[file.name.partition("ggml-cpu-")[2].rpartition(".")[0]] = file
    return found


def best_module(modules: Mapping[str, Collection[str]], features: Collection[str]) -> str | None:
    """Return the last level whose needs a processor meets; None where it meets none.

    Args:
        modules: Level to what it needs, weakest first.
        features: Of the processor, as /proc/cpuinfo names them.
    """
    return next(
        (name for name, needs in reversed(list(modules.items())) if set(needs) <= set(features)), None
    )


def load_module(
    bindings: ModuleType, folder: Path, modules: Mapping[str, Collection[str]], features: Collection[str]
) -> str | None:
    """Load the kernels of a build that has them apart.

    Args:
        bindings: Of llama.cpp.
        folder: Of its libraries.
        modules: Levels as the build's facts tell, {} where they do not.
        features: Of this processor.

    Returns:
        The level; None where the build has its kernels in, or chose by itself.

    Raises:
        ConfigError: QWEN_EDGE_CPU_MODULE names a level that is not there.
        OSError: The module does not load, or there is none for this processor.
    """
    files = module_files(folder)
    if not files:
        return None
    wanted = os.environ.get(VARIABLE, "").strip()
    if wanted and wanted not in files:
        raise ConfigError(
            f"{VARIABLE} is {wanted!r}; {folder} has {', '.join(files)}",
            hint=f"Name one of these, or unset {VARIABLE}.",
        )
    known = {name: needs for name, needs in modules.items() if name in files}
    level = wanted or best_module(known, features)
    if level is None and known:
        raise OSError(
            f"it has kernels for {', '.join(known)} only; this processor has none of what they need"
        )
    if level is None:
        load_all = bindings._lib.ggml_backend_load_all_from_path
        load_all.restype, load_all.argtypes = None, [ctypes.c_char_p]
        load_all(os.fsencode(folder))
        return None
    load = bindings._lib.ggml_backend_load
    load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    if not load(os.fsencode(files[level])):
        # It says nothing of the reason; opening the file does.
        ctypes.CDLL(str(files[level]))
        raise OSError(f"{files[level]} is no set of kernels that this library takes")
    return level
