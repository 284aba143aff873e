"""The filters and tests of Jinja that a chat template may use, each counted by what it costs.

Left out are those whose cost or memory nothing bounds (`urlize`, `striptags`, `wordwrap`, `pprint`, `xmlattr`): they make
web pages, and none of llama.cpp's example templates uses one.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.tests import TESTS

from qwen_edge.chat.template_limits import REFERENCE, STEP, LimitError, Meter

# They look at one item, or only at the length.
_CONSTANT = ("count", "d", "default", "first", "last", "length", "random")
# They yield as they are read.
_LAZY = ("map", "reject", "rejectattr", "select", "selectattr")
# They copy references.
_SHALLOW = ("batch", "items", "list", "reverse", "slice")
_SORTING = ("dictsort", "groupby", "max", "min", "sort", "unique")
_DEEP = (
    *("abs", "capitalize", "center", "e", "escape", "filesizeformat", "float", "forceescape", "format", "indent"),
    *("int", "join", "lower", "replace", "round", "safe", "string", "sum", "title", "trim", "truncate", "upper"),
    *("urlencode", "wordcount"),
)  # fmt: skip
# Comparisons in a sort of a million items.
_LOG_ITEMS = 20
_MAX_PRECISION = 100
_MAX_JSON_SPACE = 16
# What a character can become: \U0001f600, &#34;, %F0%9F%98%80.
_ESCAPED_CHARS = 12

_DEEP_TESTS = (
    *("!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "filter", "ge", "greaterthan", "gt", "in", "le", "lessthan"),
    *("lower", "lt", "ne", "test", "upper"),
)  # fmt: skip

# A width of four digits or from an argument: one conversion could fill the memory.
_WIDE_CONVERSION = re.compile(r"%[^%a-zA-Z]*(?:\d{4}|\*)")
_MAX_WIDTH = 999


_Check = Callable[..., None]


def bounded_filters(meter: Meter) -> dict[str, Any]:
    """Return the filters by name, counted by a meter."""
    checks: dict[str, _Check] = {
        "batch": lambda value, linecount, fill_with=None: meter.fit(linecount),
        "center": lambda value, width=80: meter.fit(width),
        "e": lambda value: meter.fit(_ESCAPED_CHARS * _length(value)),
        "format": lambda value, *args, **kwargs: check_format(meter, str(value), kwargs or args),
        "indent": functools.partial(_check_indent, meter),
        "join": functools.partial(_check_join, meter),
        "replace": functools.partial(check_replace, meter),
        "round": _check_round,
        "sum": _check_sum,
        "trim": lambda value, chars=None: meter.spend(_length(value) * _length(chars)),
        "urlencode": lambda value: meter.fit(_ESCAPED_CHARS * _length(value)),
    }
    checks["escape"] = checks["forceescape"] = checks["e"]
    sorting = functools.partial(_check_sorting, meter)
    filters: dict[str, Any] = {name: FILTERS[name] for name in _CONSTANT}
    filters["attr"] = _named(meter, FILTERS["attr"])
    filters |= {name: _lazy(meter, FILTERS[name]) for name in _LAZY}
    filters |= {name: _shallow(meter, FILTERS[name], checks.get(name)) for name in _SHALLOW}
    filters |= {name: _deep(meter, FILTERS[name], sorting) for name in _SORTING}
    filters |= {name: _deep(meter, FILTERS[name], checks.get(name)) for name in _DEEP}
    return {**filters, "tojson": _deep(meter, functools.partial(_to_json, meter), None)}


def bounded_tests(meter: Meter) -> dict[str, Any]:
    """Return the tests by name, counted by a meter."""
    tests: dict[str, Any] = dict(TESTS)
    return tests | {name: _deep(meter, tests[name], None) for name in _DEEP_TESTS}


def check_format(meter: Meter, text: str, values: Any) -> None:
    """Check `text % values` before it is done.

    Raises:
        LimitError: The result may be too long.
    """
    if _WIDE_CONVERSION.search(text):
        raise LimitError(f"it formats to a width of more than {_MAX_WIDTH}")
    n_conversions = text.count("%")
    size = meter.weigh(values)
    # A tuple is used up one by one; what has a name can be written again and again.
    uses = n_conversions if isinstance(values, Mapping) else 1
    meter.fit(len(text) + n_conversions * _MAX_WIDTH + uses * size)


def check_replace(meter: Meter, value: Any, old: Any, new: Any, count: int | None = None) -> None:
    """Check a replacement before it is done.

    Raises:
        LimitError: The result would be too long.
    """
    text, old, new = str(value), str(old), str(new)
    n_found = text.count(old)
    if count is not None and count >= 0:
        n_found = min(n_found, count)
    meter.fit(len(text) + n_found * max(len(new) - len(old), 0))


def _named(meter: Meter, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(environment: Any, value: Any, name: Any) -> Any:
        meter.weigh(name)
        return function(environment, value, name)

    return run


def _lazy(meter: Meter, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        # The path of an attribute is walked for each item.
        for arg in chain(args, kwargs.values()):
            meter.weigh(arg)  # names of filters and tests are hashed
        work = STEP + sum(_length(arg) for arg in chain(args, kwargs.values()))
        return function(context, meter.each(value, work) if value else value, *args, **kwargs)

    return run


def _shallow(meter: Meter, function: Callable[..., Any], check: _Check | None) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        before, value, rest = _split(function, args)
        meter.spend(STEP + REFERENCE * _length(value))
        if check is not None:
            check(value, *rest, **kwargs)
        return meter.taken(function(*before, value, *rest, **kwargs))

    return run


def _deep(meter: Meter, function: Callable[..., Any], check: _Check | None) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        before, value, rest = _split(function, args)
        meter.spend(STEP)
        for each in chain((value,), rest, kwargs.values()):
            meter.weigh(each)
        if check is not None:
            check(value, *rest, **kwargs)
        return meter.taken(function(*before, value, *rest, **kwargs))

    return functools.update_wrapper(run, function) if hasattr(function, "__name__") else run


def _split(
    function: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[tuple[Any, ...], Any, tuple[Any, ...]]:
    """Return what Jinja passes on its own, the value (an iterator as a list), and the arguments."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0
    value = args[first]
    return args[:first], list(value) if isinstance(value, Iterator) else value, args[first + 1 :]


def _length(value: Any) -> int:
    try:
        return len(value)
    except TypeError:
        return 1


def _check_indent(
    meter: Meter, value: str, width: int | str = 4, first: bool = False, blank: bool = False
) -> None:
    added = len(width) if isinstance(width, str) else width
    meter.fit(len(value) + (len(value.splitlines()) + 1) * max(added, 0))


def _check_join(meter: Meter, value: Any, d: Any = "", attribute: Any = None) -> None:
    n_items = _length(value)
    meter.spend(n_items * _length(attribute))
    meter.fit(n_items * len(str(d)))


def _check_round(value: Any, precision: int = 0, method: str = "common") -> None:
    if abs(precision) > _MAX_PRECISION:
        raise LimitError(f"it rounds to more than {_MAX_PRECISION} digits")


def _check_sum(iterable: Any, attribute: Any = None, start: Any = 0) -> None:
    # A sum of lists copies what was summed before for each.
    if not isinstance(start, int | float):
        raise SecurityError("sum adds numbers only")


def _check_sorting(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> None:
    n_items = _length(value)
    path = sum(_length(arg) for arg in chain(args, kwargs.values()))
    meter.spend(n_items * path)
    for _ in range(_LOG_ITEMS if n_items > 1 else 0):
        meter.weigh(value)


def _to_json(
    meter: Meter,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as the models were trained on it: Jinja's own filter escapes HTML and non-ASCII.

    Source: the parameters of Hugging Face's `apply_chat_template`.
    """
    space = indent if isinstance(indent, int) else _length(indent)
    if max(space, *(map(_length, separators or ("",)))) > _MAX_JSON_SPACE:
        raise LimitError(f"it spaces JSON by more than {_MAX_JSON_SPACE} characters")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return "".join(meter.each(encoder.iterencode(value), 1)) if indent else encoder.encode(value)
