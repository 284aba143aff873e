"""Models for boards and phones by their memory: `python -m qwen_edge.bench.boards`, a table in markdown.

Planned, not run: what `qwen-edge plan --memory` says of what a system leaves, with the kernels of the board's CPU. On the device
itself that command counts what is really there. `qwen_edge.bench.small_memory` runs such plans under limits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_edge.catalog import MODELS
from qwen_edge.catalog_types import CatalogModel
from qwen_edge.config import LoadConfig
from qwen_edge.memory_fit import ROOMY_N_CTX, MemoryFit, best_fit, catalog_variants
from qwen_edge.memory_kernels import PLAIN, Kernels

# SmolLM2 is there for what no Qwen fits into; an 8B would fit into 8 GB, and answer too slowly on such a CPU.
_FAMILIES = ("Qwen3", "Qwen2.5", "SmolLM2")
_MOST_WEIGHTS = 4.5e9
_ARM: Kernels = frozenset({"arm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A device.

    Attributes:
        name: As people call it.
        memory_bytes: That it is sold with.
        system_bytes: Assumed to be taken by the system and what runs beside the model.
        kernels: Of its CPU: rearranged weights take dot products (Armv8.2), which a Cortex-A53 and A72 have not.
    """

    name: str
    memory_bytes: int
    system_bytes: int
    kernels: Kernels

    @property
    def left_bytes(self) -> int:
        """What is there for the model's process."""
        return self.memory_bytes - self.system_bytes


_MIB, _GIB = 1 << 20, 1 << 30
# Assumed, not measured: a 64-bit system without a desktop takes 200 MiB of a board, the GPU's share included; Android and
# other apps keep 60% of a phone.
_HEADLESS_BYTES, _PHONE_SHARE = 200 * _MIB, 0.6
BOARDS = (
    Board(name="512 MB board (Zero 2 W)", memory_bytes=512 * _MIB, system_bytes=_HEADLESS_BYTES, kernels=PLAIN),
    Board(name="Raspberry Pi 4, 1 GB", memory_bytes=1 * _GIB, system_bytes=_HEADLESS_BYTES, kernels=PLAIN),
    Board(name="Raspberry Pi 5, 2 GB", memory_bytes=2 * _GIB, system_bytes=_HEADLESS_BYTES, kernels=_ARM),
    Board(name="Raspberry Pi 5, 4 GB", memory_bytes=4 * _GIB, system_bytes=_HEADLESS_BYTES, kernels=_ARM),
    Board(name="Raspberry Pi 5, 8 GB", memory_bytes=8 * _GIB, system_bytes=_HEADLESS_BYTES, kernels=_ARM),
    *(
        Board(name=f"phone, {size} GB", memory_bytes=size * _GIB, system_bytes=int(_PHONE_SHARE * size * _GIB), kernels=_ARM)
        for size in (4, 6, 8)
    ),
)  # fmt: skip


def recommended(board: Board) -> tuple[CatalogModel, MemoryFit] | None:
    """Return the largest chat model that stays in a board's memory with 2,048 tokens and more; None where none does."""
    candidates = []
    for model in MODELS.values():
        if model.kind != "chat" or model.family not in _FAMILIES or model.n_weights > _MOST_WEIGHTS:
            continue
        fit = best_fit(
            catalog_variants(model, kernels=board.kernels),
            LoadConfig(),
            board.left_bytes,
            n_ctx_train=model.n_ctx_train,
        )
        if fit is not None and not fit.is_from_disk and fit.config.n_ctx >= ROOMY_N_CTX:
            candidates.append((model, fit))
    return max(candidates, key=lambda pair: pair[0].n_weights, default=None)


def markdown_table(boards: Sequence[Board] = BOARDS) -> str:
    """Return one line for each board."""
    lines = ["| device | left for the model | take | n_ctx | settings | peak |", "|---|---|---|---|---|---|"]
    for board in boards:
        found = recommended(board)
        left = f"{board.left_bytes / 1e9:.2f} GB"
        if found is None:
            lines.append(f"| {board.name} | {left} | none stays in memory | - | - | - |")
            continue
        model, fit = found
        settings = ", ".join(f"{name} {value}" for name, value in fit.settings.items() if name != "n_ctx")
        lines.append(
            f"| {board.name} | {left} | {model.name}@{fit.type_name.lower()} | {fit.config.n_ctx:,} | {settings or '-'} | "
            f"{fit.resident_bytes / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    argparse.ArgumentParser(prog="python -m qwen_edge.bench.boards", description=__doc__).parse_args(argv)
    sys.stdout.write(markdown_table() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
