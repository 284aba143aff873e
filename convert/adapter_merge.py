"""Merging adapters: a checkpoint whose tensors, as they are read, come with the adapters' changes."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qwen_edge.config import AdapterLike, adapter_configs
from qwen_edge.convert.adapter import LoraPair, load_matrix, open_adapter
from qwen_edge.convert.checkpoint import Checkpoint
from qwen_edge.convert.dtypes import decode
from qwen_edge.convert.qwen import parse_config
from qwen_edge.convert.safetensors_file import ITEM_BYTES
from qwen_edge.convert.tensor_source import TensorSource
from qwen_edge.errors import CheckpointError

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MergedTensor:
    """A matrix with the changes of adapters in it, computed in float32 as it is read.

    Attributes:
        base: The matrix of the checkpoint, [rows, columns].
        changes: What each adapter does to it, and that adapter's scale.
    """

    base: TensorSource
    changes: tuple[tuple[LoraPair, float], ...]

    @property
    def name(self) -> str:
        """Its name in the checkpoint."""
        return self.base.name

    @property
    def dtype(self) -> str:
        """F32, whatever the checkpoint's: the sum is rounded once, when it is written."""
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.base.shape

    @property
    def path(self) -> Path:
        """The checkpoint's file."""
        return self.base.path

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Its length in F32."""
        return self.n_elements * ITEM_BYTES["F32"]

    def check_convertible(self) -> None:
        """Check the type of the checkpoint's matrix.

        Raises:
            UnsupportedError: It is not BF16, F16 or F32.
        """
        self.base.check_convertible()

    def read_pieces(self, piece_bytes: int) -> Generator[bytes, None, None]:
        """Yield the merged matrix as float32 bytes, `piece_bytes` at a time.

        Memory: A and B of this matrix, and about seven times `piece_bytes` (at least seven rows).

        Raises:
            CheckpointError: A file is damaged, or the sum is no finite number.
            OSError: A file cannot be read.
        """
        pending = bytearray()
        for values in self._read_rows(max(1, piece_bytes // (ITEM_BYTES["F32"] * self.shape[1]))):
            pending += values.tobytes()
            while len(pending) >= piece_bytes:
                yield bytes(pending[:piece_bytes])
                del pending[:piece_bytes]
        if pending:
            yield bytes(pending)

    def _read_rows(self, n_rows: int) -> Iterator[Matrix]:
        """Yield float32 [n_rows, columns], the last one shorter."""
        changes = [_Change(pair, scale) for pair, scale in self.changes]
        columns = self.shape[1]
        row = 0
        for piece in self.base.read_pieces(n_rows * columns * ITEM_BYTES[self.base.dtype]):
            base = decode(piece, self.base.dtype).reshape(-1, columns)
            rows = slice(row, row + len(base))
            merged = base.copy()
            for change in changes:
                change.apply(base, merged, rows)
            if not np.isfinite(merged).all():
                raise CheckpointError(
                    f"{self.name!r} of {self.path} with {', '.join(pair.b.name for pair, _ in self.changes)} "
                    "holds values that are no finite numbers",
                    hint="The adapter's training diverged, or a file is damaged: merge without it.",
                )
            yield merged
            row = rows.stop


class _Change:
    """The matrices of one adapter for one tensor, in memory."""

    def __init__(self, pair: LoraPair, scale: float) -> None:
        self._a = load_matrix(pair.a)
        self._b = load_matrix(pair.b)
        self._magnitude = load_matrix(pair.magnitude) if pair.magnitude is not None else None
        self._scaling = np.float32(pair.scaling)
        self._scale = np.float32(scale)

    def apply(self, base: Matrix, merged: Matrix, rows: slice) -> None:
        """Add this adapter's change to some rows, in place.

        Plain LoRA adds scale * delta. DoRA makes of the rows W the rows m / |base + delta| * (W + delta), where m are the
        trained lengths, and scale times the difference to W is added: 0 leaves W alone. The lengths are those of the
        model's own rows even where other adapters were merged before, as in PEFT.

        Source: arXiv 2402.09353, equation 5; `DoraLinearLayer.get_weight_norm` (norms over dim 1 of [out, in]) and
        `DoraLinearVariant.merge_safe` in the `peft` package, 0.21.

        Args:
            base: float32 [n_rows, columns], the model's rows.
            merged: The same rows with the changes of the adapters before this one.
            rows: Which rows of the matrix these are.
        """
        # A damaged adapter overflows here; the caller looks at the sum.
        with np.errstate(all="ignore"):
            delta: Matrix = (self._b[rows] @ self._a) * self._scaling
            if self._magnitude is not None:
                lengths = np.linalg.norm(base + delta, axis=1, keepdims=True)
                delta = self._magnitude[rows, None] / lengths * (merged + delta) - merged
            merged += self._scale * delta


def apply_adapters(checkpoint: Checkpoint, adapters: Sequence[AdapterLike]) -> Checkpoint:
    """Return the checkpoint with adapters merged into it. Nothing is computed before a tensor is read.

    Args:
        checkpoint: The model that the adapters were trained on.
        adapters: Folders as PEFT saves them, each alone or with a scale: what it adds is multiplied by that.
            Several are merged one after the other.

    Returns:
        A checkpoint whose changed tensors are float32; the others are those of `checkpoint`.

    Raises:
        ModelNotFoundError: There is no such adapter.
        CheckpointError: An adapter is incomplete, damaged, or of another model.
        UnsupportedError: It changes more than can be merged.
        ConfigError: A scale is no finite number.
        OSError: A file cannot be read.
    """
    base = parse_config(checkpoint.config, str(checkpoint.folder / "config.json"))
    opened = [(open_adapter(adapter.path, base), adapter.scale) for adapter in adapter_configs(adapters)]
    # Bare models are published without "model." in the names.
    names = {name.removeprefix("model."): name for name in checkpoint.tensors}
    changes: dict[str, list[tuple[LoraPair, float]]] = {}
    for adapter, scale in opened:
        for pair in adapter.pairs:
            changes.setdefault(names.get(pair.target.name, pair.target.name), []).append((pair, scale))
    tensors = dict(checkpoint.tensors)
    for name, pairs in changes.items():
        target = pairs[0][0].target
        if name not in tensors or tensors[name].shape != target.shape:
            found = f"of shape {list(tensors[name].shape)}" if name in tensors else "missing"
            raise CheckpointError(
                f"{checkpoint.folder}: {name!r}, which {pairs[0][0].b.path} changes, is {found}; "
                f"config.json asks for {list(target.shape)}",
                hint="Fetch the checkpoint again with all its files.",
            )
        tensors[name].check_convertible()
        tensors[name] = MergedTensor(tensors[name], tuple(pairs))
    return replace(checkpoint, tensors=tensors)
