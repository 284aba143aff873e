"""The environment that chat templates are compiled and rendered in: no files, no attributes but those listed, all counted.

Jinja's sandbox keeps a template from Python's insides; it bounds neither time nor memory. Here whatever can repeat or
make values grow is counted: loops, macros, slices and comparisons by what template_syntax.py puts in, operators and calls
by Jinja's own hooks, filters in template_filters.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, MappingView
from string import Formatter
from typing import Any

import jinja2
import jinja2.ext
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Cycler, Joiner, Namespace
from markupsafe import Markup

from qwen_edge.chat.template_filters import bounded_filters, bounded_tests, check_format, check_replace
from qwen_edge.chat.template_limits import (
    MAX_INT_BITS,
    MAX_MACRO_DEPTH,
    MAX_SOURCE_CHARS,
    REFERENCE,
    STEP,
    LimitError,
    Meter,
)
from qwen_edge.chat.template_syntax import (
    EACH,
    JOIN,
    SLICE,
    SPEND,
    WEIGH,
    GenerationMarkers,
    add_counts,
)

_TEXT_METHODS = frozenset((
    "capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format", "format_map", "index",
    "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable",
    "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
    "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "swapcase", "title", "upper", "zfill",
))  # fmt: skip
# Python searches from the right, and strips, by comparing at each character.
_PRODUCT_METHODS = frozenset(("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"))
_PADDING_METHODS = frozenset(("center", "ljust", "rjust", "zfill"))

_LOOP_ATTRIBUTES = frozenset((
    "changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem",
    "revindex", "revindex0",
))  # fmt: skip
_ATTRIBUTES: tuple[tuple[type | tuple[type, ...], frozenset[str]], ...] = (
    (str, _TEXT_METHODS),
    (Mapping, frozenset(("copy", "get", "items", "keys", "values"))),
    # A group of the filter groupby is a tuple with names.
    ((list, tuple), frozenset(("copy", "count", "grouper", "index", "list"))),
    ((int, float), frozenset(("is_integer",))),
    (LoopContext, _LOOP_ATTRIBUTES),
    (Macro, frozenset(("arguments", "caller", "catch_kwargs", "catch_varargs", "name"))),
    (Cycler, frozenset(("current", "next", "reset"))),
)

_MAX_FIELD_DIGITS = 3
_JINJA_ARGUMENTS = ("_loop_vars", "_block_vars")


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """Jinja in Hugging Face's dialect, sandboxed and counted. One rendering at a time."""

    intercepted_binops = frozenset(("+", "-", "*", "%", "**"))

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        """Make the environment.

        Args:
            functions: Global functions, besides Jinja's own.
        """
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols, GenerationMarkers],
            # Constants would be folded while compiling, uncounted.
            optimized=False,
            finalize=self._written,
        )
        self.meter = meter = Meter()
        self.filters: dict[str, Any] = {
            **bounded_filters(meter),
            EACH: meter.each,
            SPEND: meter.spend,
            WEIGH: self._weighed,
            JOIN: self._joined,
            SLICE: self._sliced,
        }
        self.tests = bounded_tests(meter)
        self.globals.pop("lipsum")
        self.globals.update(functions)
        self._functions = frozenset(self.globals.values())

    def load(self, source: str) -> jinja2.Template:
        """Compile a template.

        Raises:
            jinja2.TemplateSyntaxError: It does not compile.
            LimitError: It is too long or nested too deeply.
        """
        if len(source) > MAX_SOURCE_CHARS:
            raise LimitError(f"it has {len(source):,} characters, the limit is {MAX_SOURCE_CHARS:,}")
        tree = self.parse(source)
        add_counts(tree)
        tree.set_environment(self)
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """See SandboxedEnvironment: what is not listed is not safe."""
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if isinstance(obj, Namespace):
            return True
        return any(isinstance(obj, kind) and attr in names for kind, names in _ATTRIBUTES)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """See SandboxedEnvironment: format() and format_map() of text, counted."""
        text, name = getattr(value, "__self__", None), getattr(value, "__name__", "")
        if not isinstance(text, str) or name not in ("format", "format_map"):
            return None
        return functools.partial(self._format, text, name == "format_map")

    def getitem(self, obj: Any, argument: Any) -> Any:
        """See SandboxedEnvironment."""
        # It is hashed, or told of when it leads nowhere.
        if not isinstance(argument, str | int):
            self.meter.weigh(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """See SandboxedEnvironment."""
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    self.meter.fit(len(many) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MAX_INT_BITS:
                raise LimitError(f"it makes a number of more than {MAX_INT_BITS} bits")
        elif operator == "%" and isinstance(left, str):
            check_format(self.meter, left, right)
        elif operator == "-" and isinstance(left, MappingView):
            self.meter.weigh((left, right))  # hashes what is in both
        return self.meter.taken(super().call_binop(context, operator, left, right), REFERENCE)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """See SandboxedEnvironment: what is not listed cannot be called."""
        meter = __self.meter
        meter.spend(STEP + REFERENCE * len(args))
        run = functools.partial(super().call, __context, __obj)
        if isinstance(__obj, Macro):
            meter.macro_depth += 1
            if meter.macro_depth > MAX_MACRO_DEPTH:
                raise LimitError(f"it calls macros more than {MAX_MACRO_DEPTH} deep")
            result = run(*args, **kwargs)
            meter.macro_depth -= 1
            return result
        if isinstance(__obj, functools.partial | Undefined | Joiner) or (
            callable(__obj) and __obj in __self._functions
        ):
            for each in (*args, *_given(kwargs)):
                meter.weigh(each)
            return run(*args, **kwargs)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = __self._checked_text_call(owner, __obj.__name__, args, kwargs)
        elif isinstance(owner, Mapping | list | tuple | LoopContext | Cycler | int | float):
            for each in args:
                meter.weigh(each)
            if isinstance(owner, list | tuple):
                meter.weigh(owner)
        else:
            raise SecurityError(f"a template may not call a {type(__obj).__name__}")
        return meter.taken(run(*args, **kwargs))

    def _checked_text_call(
        self, text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Count a method of text before it runs; return its arguments, an iterator as a list."""
        meter = self.meter
        given = _given(kwargs)
        if name == "join" and args:
            args = (list(args[0]), *args[1:])
            meter.fit(len(args[0]) * len(text))
        size = sum(meter.weigh(value) for value in (*args, *given))
        meter.spend(len(text))
        if name in _PRODUCT_METHODS:
            meter.spend(len(text) * size // 4)
        elif name in _PADDING_METHODS and args and isinstance(args[0], int):
            meter.fit(args[0])
        elif name == "expandtabs":
            widths = [value for value in (*args, *given) if isinstance(value, int)]
            meter.fit(text.count("\t") * max(widths, default=8) + len(text))
        elif name == "replace" and len(args) >= 2:
            check_replace(meter, text, *args[:3])
        return args

    def _format(self, text: str, is_map: bool, /, *args: Any, **kwargs: Any) -> str:
        if isinstance(text, Markup):
            raise SecurityError("a template may not format text that is marked safe")
        names = {key: value for key, value in kwargs.items() if key not in _JINJA_ARGUMENTS}
        values = args[0] if is_map and len(args) == 1 else names
        self.meter.fit(len(text))
        return self.meter.taken(_MeteredFormatter(self).vformat(text, () if is_map else args, values))  # type: ignore[no-any-return]

    @jinja2.pass_context
    def _written(self, context: Context, value: Any) -> Any:
        """Count a value that is about to be written; with the context as argument it is never done while compiling."""
        if type(value) is not str:
            self.meter.weigh(value)
        return value

    def concat(self, pieces: Iterable[str]) -> str:
        """See Environment: joins output; the length is checked before it is all there."""
        parts, length = [], 0
        for piece in pieces:
            length += len(piece)
            self.meter.check_length(length)
            parts.append(piece)
        return str(self.meter.taken("".join(parts)))

    def _weighed(self, value: Any) -> Any:
        self.meter.weigh(value)
        return value

    def _joined(self, values: tuple[Any, ...]) -> str:
        self.meter.check_length(
            sum(len(value) if isinstance(value, str) else self.meter.weigh(value) for value in values)
        )
        return str(self.meter.taken("".join(map(str, values))))

    def _sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        return self.meter.taken(value[start:stop:step], REFERENCE)


def _given(kwargs: Mapping[str, Any]) -> list[Any]:
    """Return what a template passes by name; Jinja adds two arguments of its own."""
    return [value for key, value in kwargs.items() if key not in _JINJA_ARGUMENTS]


class _MeteredFormatter(SandboxedFormatter):
    """str.format() whose fields are counted."""

    _env: MeteredEnvironment

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        value, first = super().get_field(field_name, args, kwargs)
        self._env.meter.spend(STEP)
        self._env.meter.weigh(value)
        return value, first

    def format_field(self, value: Any, format_spec: str) -> str:
        digits = "".join(char if char.isdigit() else " " for char in format_spec).split()
        if any(len(number) > _MAX_FIELD_DIGITS for number in digits):
            raise LimitError(f"it formats to a width of more than {_MAX_FIELD_DIGITS} digits")
        return str(self._env.meter.taken(Formatter.format_field(self, value, format_spec)))
