"""One file for an evaluated conversation: facts, tokens and KV cache, each under a digest of its own.

::

    8 bytes    "QWENEDGE"
    4 bytes    version of this format, little endian
    4 bytes    length of the header
    32 bytes   SHA-256 of the header
    header     JSON: kind, facts, and length and SHA-256 of each section
    sections   tokens (int32, little endian), then the KV cache as the engine saves it

Saved sessions and the prefix cache are files of this form. A file that was cut off, or in which a single bit is wrong,
is found out before any of it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge.errors import FormatError
from qwen_edge.files import atomic_path

VERSION = 1
_MAGIC = b"QWENEDGE"
_PREAMBLE = struct.Struct("<8sII32s")
_SECTIONS = ("tokens", "state")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    """What such a file holds.

    Attributes:
        facts: JSON object of the caller.
        tokens: Tokens in the KV cache.
        state: uint8 [n_bytes], as Context.save_state() returned it; empty where none was saved.
    """

    facts: dict[str, Any]
    tokens: list[int]
    state: NDArray[np.uint8]


def write_state_file(
    path: str | os.PathLike[str], kind: str, facts: Mapping[str, Any], tokens: Sequence[int], state: Any = b""
) -> None:
    """Write a file, whole or not at all.

    Args:
        path: Where; an older file is replaced.
        kind: What reads it: "session" or "prefix".
        facts: JSON-ready.
        tokens: Tokens in the KV cache.
        state: The KV cache: any object with the buffer interface.

    Raises:
        OSError: It cannot be written.
    """
    sections = (np.asarray(tokens, dtype="<i4").tobytes(), memoryview(state).cast("B"))
    described = [{"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for data in sections]
    document = {"kind": kind, "facts": dict(facts), "sections": dict(zip(_SECTIONS, described, strict=True))}
    header = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    preamble = _PREAMBLE.pack(_MAGIC, VERSION, len(header), hashlib.sha256(header).digest())
    with atomic_path(path) as part, part.open("wb") as file:
        for data in (preamble, header, *sections):
            file.write(data)


def read_state_file(path: str | os.PathLike[str], kind: str) -> StateFile:
    """Read a file and check all of it.

    Args:
        path: Where it is.
        kind: As it was written with.

    Raises:
        FormatError: It is damaged, of another kind or of another version of this format.
        OSError: It cannot be read.
    """
    path = Path(path)
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        try:
            document = _read_header(file, size_bytes)
            if document["kind"] != kind:
                raise ValueError(f"it is a {document['kind']}, expected a {kind}")
            tokens, state = (
                _read_section(file, document["sections"][name], size_bytes) for name in _SECTIONS
            )
            if file.read(1):
                raise ValueError("it goes on behind its end")
            facts: dict[str, Any] = document["facts"]
            if not isinstance(facts, dict):
                raise TypeError("its facts are no object")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FormatError(
                f"{path} is no {kind} file of this version: {error or type(error).__name__}",
                hint="Damaged, or written by another version of qwen-edge: it cannot be used, remove it.",
            ) from error
    return StateFile(facts=facts, tokens=tokens.view("<i4").tolist(), state=state)


def is_state_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as one of these does, whole or not.

    Raises:
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _read_header(file: BufferedReader, size_bytes: int) -> dict[str, Any]:
    preamble = file.read(_PREAMBLE.size)
    if len(preamble) < _PREAMBLE.size:
        raise ValueError("it ends within its first bytes")
    magic, version, length, digest = _PREAMBLE.unpack(preamble)
    if magic != _MAGIC:
        raise ValueError(f"it begins with {magic!r}, expected {_MAGIC!r}")
    if version != VERSION:
        raise ValueError(f"its format is version {version}, expected {VERSION}")
    if length > size_bytes:
        raise ValueError("it ends within its header")
    header = file.read(length)
    if hashlib.sha256(header).digest() != digest:
        raise ValueError("its header is damaged")
    document = json.loads(header.decode("utf-8", "surrogatepass"))
    if not isinstance(document, dict):
        raise TypeError("its header is no object")
    return document


def _read_section(file: BufferedReader, described: Mapping[str, Any], size_bytes: int) -> NDArray[np.uint8]:
    length = described["bytes"]
    if not isinstance(length, int) or not 0 <= length <= size_bytes:
        raise ValueError(f"a section of {length!r} bytes does not fit in {size_bytes}")
    data = bytearray(length)
    if file.readinto(data) != length:
        raise ValueError("it is cut off")
    if hashlib.sha256(data).hexdigest() != described["sha256"]:
        raise ValueError("its contents are damaged")
    return np.frombuffer(data, dtype=np.uint8)
