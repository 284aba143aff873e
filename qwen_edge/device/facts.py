"""Facts that may be missing, and the files of /proc and /sys that they are read from."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_WHY = {
    errno.ENOENT: "is not there",
    errno.ENOTDIR: "is not there",
    errno.EACCES: "may not be read by this user",
    errno.EPERM: "may not be read by this user",
}


@dataclass(frozen=True, slots=True)
class Unknown:
    """Stands for a fact that this machine does not tell.

    Attributes:
        reason: Why, for people: "/sys/class/power_supply is empty".
    """

    reason: str


def known(fact: T | Unknown) -> T | None:
    """Return a fact, or None where it is unknown."""
    return None if isinstance(fact, Unknown) else fact


def on_android() -> bool:
    """Return whether this is Android: Termux's Python says so as its platform since 3.13, "linux" before."""
    return sys.platform == "android" or hasattr(sys, "getandroidapilevel")


def why_unread(error: OSError) -> str:
    """Return what an error of the system says of a file, in words that follow its name."""
    return _WHY.get(error.errno or 0, f"cannot be read ({error.strerror or error})")


@dataclass(frozen=True, slots=True)
class Tree:
    """/proc and /sys of a machine: of this one, or written below some folder by a test.

    Attributes:
        root: What stands for "/". Names of files below are given without the first slash.
    """

    root: Path = Path("/")

    def text(self, name: str) -> str:
        """Return a file without spaces at its ends, "" where it cannot be read."""
        try:
            # Not through Path, which takes as long again: a server has thousands of these files.
            with open(f"{self.root}/{name}", "rb", buffering=0) as file:  # noqa: PTH123
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def number(self, name: str) -> int | None:
        """Return the integer that a file holds, None where it holds something else."""
        try:
            return int(self.text(name))
        except ValueError:
            return None

    def cpus(self, name: str) -> tuple[int, ...]:
        """Return the CPUs that a file lists; () where it lists none."""
        return parse_cpu_list(self.text(name))

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """Return the entries of a folder that begin with a prefix, sorted by their number; [] where there are none."""
        try:
            found = [path.name for path in (self.root / folder).iterdir() if path.name.startswith(prefix)]
        except OSError:
            return []
        return sorted(found, key=lambda name: (len(name), name))

    def why_no_text(self, name: str) -> str:
        """Return why `text` gave nothing for a file."""
        try:
            (self.root / name).read_bytes()
        except OSError as error:
            return f"/{name} {why_unread(error)}"
        return f"/{name} is empty"

    def why_no_names(self, folder: str) -> str:
        """Return why `names` gave nothing for a folder."""
        try:
            is_empty = next((self.root / folder).iterdir(), None) is None
        except OSError as error:
            return f"/{folder} {why_unread(error)}"
        return f"/{folder} {'is empty' if is_empty else 'has nothing of the kind'}"


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Read a list of CPUs: "0-3,8" is (0, 1, 2, 3, 8). What is no such list gives ().

    Source: Linux, Documentation/admin-guide/cputopology.rst.
    """
    found: set[int] = set()
    for part in text.replace(" ", ",").split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            continue
        # No kernel has more CPUs: a damaged file must not fill the memory.
        found.update(range(int(first), min(int(last or first), 1 << 16) + 1))
    return tuple(sorted(found))


def to_json(value: Any) -> Any:
    """Return a tree of dataclasses as JSON types; what is unknown becomes null."""
    if isinstance(value, Unknown):
        return None
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def reasons(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, reason) of every unknown fact in a tree of dataclasses."""
    if isinstance(value, Unknown):
        yield path, value.reason
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from reasons(getattr(value, field.name), f"{path}.{field.name}".lstrip("."))
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from reasons(item, f"{path}[{i}]")
