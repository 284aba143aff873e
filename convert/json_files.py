"""JSON files of a checkpoint, read so that whatever is in them ends in a value or in a CheckpointError."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen_edge.errors import CheckpointError
from qwen_edge.files import reading

_REFETCH = "Fetch the file again: it does not look as its publisher wrote it."


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse UTF-8 JSON whose outermost value is an object.

    Args:
        data: The document.
        where: What the document is, for messages: a path, or a path and a part of the file.

    Raises:
        CheckpointError: No UTF-8, no JSON, a key twice in one object, or the outermost value is no object.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON: {error}", hint=_REFETCH) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{where} holds a JSON {type(value).__name__}, expected an object", hint=_REFETCH
        )
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose outermost value is an object.

    Raises:
        CheckpointError: The file is missing or not such a file.
        ReadError: It cannot be read.
    """
    try:
        with reading(path):
            data = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.name} is missing from {path.parent}",
            hint=f"Fetch the checkpoint again with all its files; {path.name} stands beside the weights.",
        ) from error
    return parse_object(data, str(path))


def read_object_if_present(path: Path) -> dict[str, Any]:
    """Read a JSON object, or return an empty one where there is no such file."""
    return read_object(path) if path.is_file() else {}


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        CheckpointError: The file is not UTF-8.
        OSError: It cannot be read.
    """
    try:
        with reading(path):
            return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error}", hint=_REFETCH) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return result


class Fields:
    """Typed access to a JSON object, each wrong type an error that names the key and the file."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def __contains__(self, key: str) -> bool:
        """Tell whether `key` has a value other than null."""
        return self.values.get(key) is not None

    def integer(self, key: str, *, low: int, high: int) -> int:
        """Return an integer in [low, high].

        Raises:
            CheckpointError: The key is absent, or its value is something else.
        """
        return int(
            self._checked(
                key, lambda value: _is_int(value) and low <= value <= high, f"an integer in {low}..{high}"
            )
        )

    def number(self, key: str, *, low: float, high: float) -> float:
        """Return a number in [low, high].

        Raises:
            CheckpointError: The key is absent, or its value is something else.
        """
        return float(
            self._checked(
                key,
                lambda value: _is_number(value) and low <= value <= high,
                f"a number in {low:g}..{high:g}",
            )
        )

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false; `default` where the key is absent or null."""
        if key not in self:
            return default
        return bool(self._checked(key, lambda value: isinstance(value, bool), "true or false"))

    def text(self, key: str, default: str = "") -> str:
        """Return a string; `default` where the key is absent or null."""
        if key not in self:
            return default
        return str(self._checked(key, lambda value: isinstance(value, str), "a string"))

    def table(self, key: str) -> Fields:
        """Return an object; an empty one where the key is absent or null."""
        value = self._checked(key, lambda value: isinstance(value, dict), "an object") if key in self else {}
        return Fields(value, f"{self.where}, {key!r}")

    def items(self, key: str) -> list[Any]:
        """Return a list; an empty one where the key is absent or null."""
        if key not in self:
            return []
        return list(self._checked(key, lambda value: isinstance(value, list), "a list"))

    def _checked(self, key: str, is_valid: Callable[[Any], bool], expected: str) -> Any:
        if self.values.get(key) is None:
            raise CheckpointError(f"{self.where} has no {key!r}, expected {expected}", hint=_REFETCH)
        value = self.values[key]
        if not is_valid(value):
            raise CheckpointError(
                f"{self.where}: {key!r} is {shorten(value)}, expected {expected}", hint=_REFETCH
            )
        return value


def shorten(value: Any, limit: int = 80) -> str:
    """Return a value as JSON-like text for a message, cut to `limit` characters."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
