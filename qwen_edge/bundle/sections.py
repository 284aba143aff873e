"""A model file in sections, its header and each tensor, with a digest of each: damage is told by the tensor's name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qwen_edge.errors import FormatError
from qwen_edge.gguf_header import DEFAULT_ALIGNMENT, GGUFHeader, padded

_PIECE_BYTES = 8 << 20
_MAX_BYTES = 16_000_000

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a file.

    Attributes:
        name: The tensor's, or "header", or "end" for what follows the last tensor.
        start: First byte.
        size_bytes: Length, the padding behind a tensor included.
        sha256: Digest; "" before it is known.
    """

    name: str
    start: int
    size_bytes: int
    sha256: str = ""


def sections_of(header: GGUFHeader) -> tuple[Section, ...]:
    """Return the sections of a GGUF file, which together are all of it."""
    alignment = int(header.metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    data_start = padded(header.header_bytes, alignment) if header.tensors else header.size_bytes
    starts = [("header", 0), *((tensor.name, data_start + tensor.offset) for tensor in header.tensors)]
    if header.tensors:
        last = header.tensors[-1]
        starts.append(
            ("end", min(data_start + padded(last.offset + last.n_bytes, alignment), header.size_bytes))
        )
    ends = [start for _, start in starts[1:]] + [header.size_bytes]
    return tuple(
        Section(name, start, end - start)
        for (name, start), end in zip(starts, ends, strict=True)
        if end > start
    )


def copy_hashed(
    source: Path, target: Path, sections: tuple[Section, ...], progress: Progress = lambda n_bytes: None
) -> tuple[str, tuple[Section, ...]]:
    """Copy a file, and return the SHA-256 of the copy with that of each section.

    Args:
        source: A file.
        target: Its copy; not there yet.
        sections: All of the file, in order.
        progress: Called with the bytes of each piece.

    Raises:
        FormatError: The file has changed since its sections were made.
        OSError: It cannot be read, or the copy not written.
    """
    whole = hashlib.sha256()
    done = []
    with source.open("rb") as reader, target.open("wb") as writer:
        for section in sections:
            part = hashlib.sha256()
            n_read = 0
            for piece in _pieces(reader, section.size_bytes):
                whole.update(piece)
                part.update(piece)
                writer.write(piece)
                n_read += len(piece)
                progress(len(piece))
            if n_read < section.size_bytes:
                break
            done.append(Section(section.name, section.start, section.size_bytes, part.hexdigest()))
        if len(done) < len(sections) or reader.read(1):
            raise FormatError(f"{source} changed while it was copied", hint="Let nothing write to it.")
    return whole.hexdigest(), tuple(done)


def damaged_sections(path: Path, sections: tuple[Section, ...]) -> tuple[Section, ...]:
    """Return the sections that a file does not hold as they were, those behind its end included.

    Raises:
        OSError: It cannot be read.
    """
    damaged = []
    with path.open("rb") as reader:
        for section in sections:
            reader.seek(section.start)
            part = hashlib.sha256()
            for piece in _pieces(reader, section.size_bytes):
                part.update(piece)
            if part.hexdigest() != section.sha256:
                damaged.append(section)
    return tuple(damaged)


def sections_to_json(sections: tuple[Section, ...]) -> str:
    """Return a list of [name, start, size, SHA-256], a line each."""
    rows = (
        json.dumps([section.name, section.start, section.size_bytes, section.sha256], ensure_ascii=False)
        for section in sections
    )
    return "[\n" + ",\n".join(rows) + "\n]\n"


def read_sections(path: Path) -> tuple[Section, ...]:
    """Read what sections_to_json() made.

    Raises:
        FormatError: It is something else.
        OSError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        rows = json.loads(data.decode("utf-8"))
        if not isinstance(rows, list):
            raise ValueError("it is no list")
        return tuple(Section(*_checked(row)) for row in rows)
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{path} is damaged: {error}", hint="Copy the bundle again.") from error


def _checked(row: object) -> tuple[str, int, int, str]:
    match row:
        case [str(name), int(start), int(size_bytes), str(sha256)] if start >= 0 and size_bytes >= 0:
            return name, start, size_bytes, sha256
    raise ValueError(f"{str(row)[:60]!r} is no section")


def _pieces(reader: BinaryIO, n_bytes: int) -> Iterator[bytes]:
    """Yield the next bytes of a file, fewer where it ends."""
    while n_bytes and (piece := reader.read(min(n_bytes, _PIECE_BYTES))):
        n_bytes -= len(piece)
        yield piece
