"""The folder in which a fault happens, and the good files that are damaged there."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import synthetic
from tests.hub_server import Fault as HubFault
from tests.hub_server import Hub

REPOSITORY = "org/tiny"
# Made once a run, as the commands make them from a checkpoint with random weights.
_MADE = {
    "m.gguf": ("convert", "ckpt", "-o", "m.gguf"),
    "q8.gguf": ("quantize", "m.gguf", "-t", "q8_0", "-o", "q8.gguf"),
    # Rows of 256 weights, as the small types need them.
    "wide.gguf": ("convert", str(synthetic.TINY_QWEN3), "-o", "wide.gguf"),
    "onnx": ("convert", "ckpt", "--to", "onnx", "-o", "onnx"),
    "m.gguf.manifest.json": ("convert", "ckpt", "-o", "m.gguf"),
    "b": ("bundle", "m.gguf", "-o", "b", "--n-ctx", "256"),
}


class Stock:
    """Whole files, made when they are first asked for."""

    def __init__(self, folder: Path, qwen_edge: Callable[..., None]) -> None:
        self._folder = folder
        self._qwen_edge = qwen_edge

    def get(self, name: str) -> Path:
        path = self._folder / name
        if not path.exists():
            if name == "ckpt":
                return synthetic.write_checkpoint(path, n_shards=2, std=0.2)
            command = _MADE[name]
            if command[1] in ("ckpt", *_MADE):
                self.get(command[1])
            self._qwen_edge(*command, cwd=self._folder)
        return path


@dataclass
class World:
    """One folder for one fault.

    Attributes:
        folder: Where the command runs; commands name what is in it.
        stock: Whole files.
        env: Variables that the command gets.
    """

    folder: Path
    stock: Stock
    env: dict[str, str] = field(default_factory=dict)
    closing: ExitStack = field(default_factory=ExitStack)

    def take(self, name: str, to: str | None = None) -> Path:
        """Copy a whole file or folder here."""
        source, path = self.stock.get(name), self.folder / (to or name)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, path)
        return path

    def checkpoint(self, **settings: Any) -> Path:
        """Write a checkpoint with one weight file."""
        return synthetic.write_checkpoint(self.folder / "ckpt", std=0.2, **settings)

    def serve(self, *faults: HubFault) -> None:
        """Put a repository with one GGUF file on a hub of this machine."""
        repository = self.folder / "hub" / REPOSITORY
        repository.mkdir(parents=True)
        shutil.copyfile(self.stock.get("m.gguf"), repository / "tiny-BF16.gguf")
        hub = self.closing.enter_context(Hub(self.folder / "hub", faults=list(faults)))
        self.env |= {"HF_ENDPOINT": hub.endpoint, "MODELSCOPE_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object; None removes one."""
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    synthetic.write_json(path, {key: value for key, value in data.items() if value is not None})


def cut(path: Path, n_bytes: int) -> None:
    """Leave the first bytes of a file; below 0: all but the last."""
    path.write_bytes(path.read_bytes()[:n_bytes])


def overwrite(path: Path, at: int, data: bytes) -> None:
    """Change bytes in place."""
    with path.open("rb+") as file:
        file.seek(at)
        file.write(data)


def safetensors_header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file."""
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return header


def set_safetensors_header(path: Path, header: dict[str, Any] | bytes, length: int | None = None) -> None:
    """Replace the header of a safetensors file, the data behind it unchanged."""
    data = path.read_bytes()
    old = struct.unpack("<Q", data[:8])[0]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data[8 + old :])


def set_weight(path: Path, tensor: str, bf16_bits: int) -> None:
    """Put one BF16 number into a tensor of a safetensors file."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    overwrite(
        path,
        start + safetensors_header(path)[tensor]["data_offsets"][0] + 10,
        struct.pack("<H", bf16_bits),
    )


def tensor_offset(path: Path, tensor: str) -> int:
    """Return where the data of a tensor begins in a GGUF file."""
    from qwen_edge.gguf_header import padded, read_header

    header = read_header(path)
    entry = next(entry for entry in header.tensors if entry.name == tensor)
    return padded(header.header_bytes) + entry.offset
