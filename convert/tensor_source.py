"""What conversion needs of a tensor, wherever it comes from: a file, rows of a file, or a file with adapters merged in."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Protocol


class TensorSource(Protocol):
    """A tensor that can be read in pieces. `TensorEntry` is one as stored, `MergedTensor` one with adapters in it."""

    @property
    def name(self) -> str:
        """Its name in the checkpoint."""

    @property
    def dtype(self) -> str:
        """Type of the bytes that `read_pieces` yields: "BF16", "F16", "F32", or one that cannot be converted."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, as in the checkpoint."""

    @property
    def path(self) -> Path:
        """The checkpoint's file, for messages."""

    @property
    def n_bytes(self) -> int:
        """Bytes that `read_pieces` yields in all."""

    @property
    def n_elements(self) -> int:
        """Number of weights."""

    def check_convertible(self) -> None:
        """Check that the type is one that can be converted.

        Raises:
            UnsupportedError: It is not BF16, F16 or F32.
        """

    def read_pieces(self, piece_bytes: int) -> Generator[bytes, None, None]:
        """Yield the bytes in order, each piece but the last of exactly `piece_bytes`.

        Args:
            piece_bytes: A multiple of 4, so that no number is cut.

        Raises:
            CheckpointError: A file behind it is damaged.
            OSError: It cannot be read.
        """
