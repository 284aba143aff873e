"""Our own kernels for decode, compiled into llama.cpp's CPU library: whether they are wanted, and what they are.

They are C++ sources in `kernels/`; its CMake file adds them to the target and renames the functions that they replace.
docs/kernels.md tells what they gain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from qwen_edge.errors import ConfigError

VARIABLE = "QWEN_EDGE_KERNELS"
KERNELS_FOLDER = Path(__file__).parent / "kernels"
CMAKE_FILE = KERNELS_FOLDER / "kernels.cmake"

# As `uname -m` and Windows call the one architecture that they are written for.
_ARCHITECTURES = ("x86_64", "AMD64", "amd64")


def wants_kernels(architecture: str, env: Mapping[str, str]) -> bool:
    """Return whether a build gets our kernels: on x86-64, unless QWEN_EDGE_KERNELS is 0.

    Raises:
        ConfigError: QWEN_EDGE_KERNELS is something else than 0 or 1.
    """
    said = env.get(VARIABLE, "").strip()
    if said not in ("", "0", "1"):
        raise ConfigError(
            f"{VARIABLE} is {said!r}",
            hint=f"{VARIABLE}=0 builds llama.cpp without qwen-edge's own kernels, 1 or nothing builds with them.",
        )
    return said != "0" and architecture in _ARCHITECTURES


def kernels_digest() -> str:
    """Return a digest of the sources, 16 hex digits: a build with other ones is another build."""
    digest = hashlib.sha256()
    for file in sorted(KERNELS_FOLDER.iterdir()):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
