"""How much a chat template may do: it comes with a model file, from whoever made that.

Work is counted, not timed, so that a template ends the same way on every machine. One unit is about one character
handled; everything else is stated in that measure. Both limits grow with the conversation, because a template goes over
all of it, so that no honest one meets them: the 67 templates that llama.cpp carries as examples need at most 1 in
300 of it for a short conversation, 1 in 20 for one of 200 messages.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, MappingView
from typing import Any

import jinja2
from jinja2.utils import Namespace

# The longest of llama.cpp's examples has 17,000 characters. Compiling takes about 10 µs a character.
MAX_SOURCE_CHARS = 200_000
# Levels of the syntax tree; those examples have up to 29. Python's own compiler is recursive too.
MAX_SYNTAX_DEPTH = 100
# Macros inside macros, as for schemas of tools. Each takes six Python frames of the 1,000 that there are.
MAX_MACRO_DEPTH = 64
# Lists inside lists. Python compares and hashes them by recursion, tuples without any guard of the C stack.
MAX_VALUE_DEPTH = 100
# Larger whole numbers have no use in a prompt, and their powers take all memory.
MAX_INT_BITS = 4096

# A second or two of hostile work on a laptop, and 256 MB of text if it keeps all that it makes.
_BASE_WORK, _WORK_A_CHAR = 32_000_000, 400
# Copying is fast, and templates that gather a prompt piece by piece copy all of it for each piece.
_BYTES_COPIED = 8
# Of one value, and of the output. A context of 262,144 tokens is about a million characters.
_BASE_CHARS, _CHARS_A_CHAR = 1_000_000, 8

# Units of work: a call, filter or round of a loop; an expression in a loop or macro; a value within a value; a
# reference in a new list; a new small object.
STEP, EXPRESSION, VALUE, REFERENCE, OBJECT = 32, 4, 16, 8, 64


class LimitError(jinja2.TemplateRuntimeError):
    """A template does more than it may."""


class Meter:
    """Counts the work of one rendering.

    Attributes:
        work_left: Units.
        max_chars: Characters of one value, and of the output; also items of one list.
        macro_depth: Macros that are running.
    """

    def __init__(self) -> None:
        self.start({})

    def start(self, variables: Mapping[str, Any]) -> None:
        """Begin a rendering of these variables."""
        size = _size(variables)
        self.max_work = self.work_left = _BASE_WORK + _WORK_A_CHAR * size
        self.max_chars = _BASE_CHARS + _CHARS_A_CHAR * size
        self.macro_depth = 0

    def spend(self, work: int) -> None:
        """Count work.

        Raises:
            LimitError: It is more than is left.
        """
        self.work_left -= work
        if self.work_left < 0:
            raise LimitError(f"it does not end within {self.max_work:,} steps")

    def fit(self, n_chars: int) -> None:
        """Check the length of a value that is about to be made, in characters or items, and count it as work.

        Raises:
            LimitError: It is too long.
        """
        self.check_length(n_chars)
        self.spend(max(n_chars, 0))

    def check_length(self, n_chars: int) -> None:
        """Check the length of a value in characters or items.

        Raises:
            LimitError: It is too long.
        """
        if n_chars > self.max_chars:
            raise LimitError(f"it makes a value of more than {self.max_chars:,} characters or items")

    def check_number(self, value: int) -> None:
        """Check the size of a whole number.

        Raises:
            LimitError: It is too large.
        """
        if value.bit_length() > MAX_INT_BITS:
            raise LimitError(f"it makes a number of more than {MAX_INT_BITS} bits")

    def each(self, items: Iterable[Any], work: int = STEP) -> Iterator[Any]:
        """Yield items, counting work for each."""
        for item in items:
            self.spend(work)
            yield item

    def weigh(self, value: Any) -> int:
        """Count and return the size of all that is in a value: what writing, comparing or hashing it would go over.

        What stands in it twice counts twice, as it would be written twice.

        Raises:
            LimitError: It is too large, or nested too deeply.
        """
        if type(value) is str:
            size = len(value)
            self.spend(size)
            return size
        left = self.work_left
        levels = [iter((value,))]
        while levels:
            for item in levels[-1]:
                self.spend(VALUE)
                inner = self._open(item)
                if inner is not None:
                    levels.append(inner)
                    break
            else:
                levels.pop()
            if len(levels) > MAX_VALUE_DEPTH:
                raise LimitError(f"it nests values more than {MAX_VALUE_DEPTH} deep")
        return left - self.work_left

    def _open(self, item: Any) -> Iterator[Any] | None:
        """Count one value; return what is in it, None when nothing is."""
        if isinstance(item, str):
            self.spend(len(item))
        elif isinstance(item, int):
            self.check_number(item)
        elif isinstance(item, Mapping):
            return iter([part for pair in item.items() for part in pair])
        elif isinstance(item, list | tuple | set | frozenset | MappingView):
            return iter(item)  # type: ignore[arg-type]
        elif isinstance(item, range):
            self.spend(len(item))
        elif isinstance(item, Namespace):
            # It may hold itself.
            raise LimitError("it uses a whole namespace as a value")
        return None

    def taken(self, value: Any, item_work: int = OBJECT) -> Any:
        """Count what an operation has made, and return it; an iterator is counted as it is read."""
        if isinstance(value, str):
            self.check_length(len(value))
            self.spend(sys.getsizeof(value) // _BYTES_COPIED)
        elif isinstance(value, int):
            self.check_number(value)
        elif isinstance(value, list | tuple):
            self.check_length(len(value))
            self.spend(item_work * len(value))
        elif isinstance(value, Iterator):
            return self.each(value)
        return value


def _size(value: Any) -> int:
    """Return the size of what a caller passes, each object once: it may hold itself."""
    size, seen, waiting = 0, set[int](), [value]
    while waiting:
        item = waiting.pop()
        size += VALUE
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, Mapping | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item)
            if isinstance(item, Mapping):
                waiting.extend(item.values())
    return size
