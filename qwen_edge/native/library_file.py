"""What the files of a native library tell of how it was built, read without loading them."""

from __future__ import annotations

import contextlib
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from qwen_edge.native.toolchain import Compiler, parse_compiler

# GCC and clang leave their names in the section .comment of what they compile.
_COMPILER = re.compile(rb"(GCC: \([^)\0]{1,80}\) [\d.]+|(?:[\w ]{0,20})clang version [\d.]+)")
# The entry to llama.cpp's AMX kernels; llama_print_system_info tells of the C files' flags only.
# Source: ggml/src/ggml-cpu/amx/amx.h.
_AMX_SYMBOL = b"ggml_backend_amx_buffer_type"


def has_library(folder: Path) -> bool:
    """Return whether a folder holds llama.cpp's library, under any of the systems' names."""
    return any(_files(folder, "llama"))


def has_amx_kernels(folder: Path) -> bool | None:
    """Return whether a build contains llama.cpp's AMX kernels; None where its files do not tell."""
    with _ggml_cpu(folder) as data:
        return None if data is None else data.find(_AMX_SYMBOL) >= 0


def compiler_of(folder: Path) -> Compiler | None:
    """Return the compiler that made a build; None where its files do not tell."""
    with _ggml_cpu(folder) as data:
        found = _COMPILER.search(data) if data is not None else None
        # Copied while the file is open: a match reads from it.
        banner = found.group(1).decode("ascii", "replace") if found else ""
    if not banner:
        return None
    if banner.startswith("GCC: "):
        # As `--version` of GCC prints it, which is how it is told from others.
        return parse_compiler("gcc", f"{banner.replace('GCC:', 'gcc')}\nFree Software Foundation")
    return parse_compiler("clang", banner)


def _files(folder: Path, name: str) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (
            file
            for pattern in (f"lib{name}.so*", f"lib{name}.*dylib", f"{name}.dll")
            for file in sorted(folder.glob(pattern))
            if file.is_file()
        )


@contextlib.contextmanager
def _ggml_cpu(folder: Path) -> Iterator[mmap.mmap | None]:
    """Give the bytes of the library with the CPU's kernels; None for another system's form, or where it is not read."""
    file = next((file for file in _files(folder, "ggml-cpu") if ".so" in file.name), None)
    try:
        with contextlib.ExitStack() as stack:
            data = None
            if file is not None:
                opened = stack.enter_context(file.open("rb"))
                data = stack.enter_context(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
            yield data
    except (OSError, ValueError):
        yield None
