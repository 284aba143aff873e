"""JSON schemas from Python types and functions, and values of those types from JSON.

::

    hint     int | None, Literal["a", "b"], list[Item], a dataclass, a TypedDict, an Enum, a pydantic model
    schema   json_schema(hint)         what a model is shown and held to
    value    build(hint, json_value)   an instance, after coercion.coerce() has put the JSON right
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from qwen_edge.chat.coercion import coerce, fits
from qwen_edge.errors import ConfigError, OutputError

_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    list: {"type": "array"},
    dict: {"type": "object"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.datetime: {"type": "string", "format": "date-time"},
    Any: {},
    object: {},
}
_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, set, frozenset)
_DICTS = (dict, collections.abc.Mapping)
_SECTION = re.compile(r"(Args|Arguments|Parameters|Attributes|Returns|Raises|Yields|Examples?|Notes?):\s*\Z")
_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)\Z")


def json_schema(hint: Any) -> dict[str, Any]:
    """Return the JSON schema of a type.

    Args:
        hint: str, int, float, bool, None, Any, date, datetime, Literal, Enum, Optional and unions, list, set, tuple, dict with
            text keys, dataclasses and TypedDicts of these (nested, also in themselves), pydantic models, Annotated with
            a text as description; or a JSON schema, which is returned as it is.

    Raises:
        ConfigError: Another type.
    """
    if isinstance(hint, Mapping):
        return dict(hint)
    builder = _Builder()
    schema = builder.schema(hint, "the type")
    return {**schema, "$defs": builder.definitions} if builder.definitions else schema


def parse(hint: Any, value: Any) -> Any:
    """Return a JSON value as an instance of a type: checked, put right where that is unambiguous, built.

    Args:
        hint: As in json_schema(); for a JSON schema the value itself is returned.
        value: As json.loads returns it.

    Raises:
        OutputError: It does not fit.
    """
    value = coerce(value, json_schema(hint))
    return value if isinstance(hint, Mapping) else build(hint, value)


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what a model is told of a function: name, description, parameters.

    The description is the docstring up to its first section; `Args:` describes the parameters. Those with a default
    need not be given.

    Raises:
        ConfigError: A parameter has no type hint, or one that JSON cannot carry; or takes *args or **kwargs.
    """
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise ConfigError(f"a tool must be a function with a name (not {function!r})")
    text, descriptions = parse_docstring(inspect.getdoc(function) or "")
    builder = _Builder()
    properties: dict[str, Any] = {}
    required = []
    hints = parameter_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        place = f"parameter {parameter.name!r} of {name}()"
        schema = builder.schema(hints[parameter.name], place)
        if parameter.name in descriptions:
            schema = {**schema, "description": descriptions[parameter.name]}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        else:
            schema = _with_default(schema, parameter.default)
        properties[parameter.name] = schema
    parameters: dict[str, Any] = {
        "type": "object", "properties": properties, "required": required, "additionalProperties": False,
    }  # fmt: skip
    if builder.definitions:
        parameters["$defs"] = builder.definitions
    return {"name": name, "description": text, "parameters": parameters}


def parameter_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the type hints of a function's parameters. Errors as in function_schema()."""
    name = getattr(function, "__name__", repr(function))
    hints = typing.get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(
                f"parameter {parameter.name!r} of {name}() cannot be given by name",
                hint="A model names each.",
            )
        if parameter.name not in hints:
            raise ConfigError(
                f"parameter {parameter.name!r} of {name}() has no type hint",
                hint=f"Say what a model may pass: def {name}({parameter.name}: str).",
            )
    return hints


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the description in a docstring of Google's form, and the descriptions of the names it lists."""
    description: list[str] = []
    entries: dict[str, str] = {}
    section = entry = ""
    indent = 0
    for line in inspect.cleandoc(text).splitlines():
        depth = len(line) - len(line.lstrip())
        heading = _SECTION.match(line) if depth == 0 else None
        if heading:
            section, entry, indent = heading[1], "", 0
        elif not section:
            description.append(line)
        elif section in ("Args", "Arguments", "Parameters", "Attributes") and line.strip():
            indent = indent or depth
            match = _ENTRY.match(line.strip()) if depth == indent else None
            if match:
                entry = match[1]
                entries[entry] = match[2]
            elif entry:
                entries[entry] = f"{entries[entry]} {line.strip()}".strip()
    return "\n".join(description).strip(), entries


def to_plain(value: Any) -> Any:
    """Return a value as JSON-ready data: the inverse of build(). What is none of its types becomes its text."""
    if isinstance(value, enum.Enum):
        return to_plain(value.value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return value.model_dump(mode="json")
    if isinstance(value, datetime.date):
        return value.isoformat()
    return str(value)


class _Builder:
    """Schemas of one root; types that contain themselves become definitions."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._open: list[Any] = []

    def schema(self, hint: Any, place: str) -> dict[str, Any]:
        try:
            if hint in _PLAIN:
                return dict(_PLAIN[hint])
        except TypeError:
            pass  # not hashable, so none of these
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            texts = [text for text in arguments[1:] if isinstance(text, str)]
            schema = self.schema(arguments[0], place)
            return {**schema, "description": texts[0]} if texts else schema
        if origin in (typing.Required, typing.NotRequired):
            return self.schema(arguments[0], place)
        if origin is Literal:
            return _choices([to_plain(choice) for choice in arguments])
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.schema(member, place) for member in arguments]}
        if origin in _LISTS:
            return {"type": "array", "items": self.schema(arguments[0], place)}
        if origin is tuple:
            return self._tuple(arguments, place)
        if origin in _DICTS:
            if arguments[0] is not str:
                raise ConfigError(f"{place}: the keys of a dict must be str (not {arguments[0]!r})")
            return {"type": "object", "additionalProperties": self.schema(arguments[1], place)}
        if isinstance(hint, type):
            if issubclass(hint, enum.Enum):
                return _choices([to_plain(member) for member in hint])
            if hasattr(hint, "model_json_schema"):
                return self._pydantic(hint)
            if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
                return self._record(hint, place)
        raise ConfigError(
            f"{place} is {hint!r}, which has no JSON schema",
            hint="Use str, int, float, bool, Literal, Enum, list, dict[str, ...], a dataclass, a TypedDict or a pydantic model.",
        )

    def _tuple(self, arguments: tuple[Any, ...], place: str) -> dict[str, Any]:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return {"type": "array", "items": self.schema(arguments[0], place)}
        count = len(arguments)
        items = [self.schema(argument, place) for argument in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": count, "maxItems": count}

    def _record(self, hint: Any, place: str) -> dict[str, Any]:
        name = hint.__name__
        if hint in self._open:
            self.definitions.setdefault(name, {})
            return {"$ref": f"#/$defs/{name}"}
        self._open.append(hint)
        _, descriptions = parse_docstring(_own_docstring(hint))
        properties = {}
        for key, member in _fields(hint).items():
            schema = self.schema(member, f"{place}, field {key!r}")
            if key in descriptions:
                schema.setdefault("description", descriptions[key])
            properties[key] = schema
        schema = {
            "type": "object", "properties": properties, "required": _required(hint), "additionalProperties": False,
        }  # fmt: skip
        self._open.pop()
        if name in self.definitions:
            self.definitions[name] = schema
            return {"$ref": f"#/$defs/{name}"}
        return schema

    def _pydantic(self, hint: Any) -> dict[str, Any]:
        schema: dict[str, Any] = hint.model_json_schema()
        self.definitions.update(schema.pop("$defs", {}))
        if "additionalProperties" not in schema and "properties" in schema:
            schema["additionalProperties"] = False
        return schema


def build(hint: Any, value: Any) -> Any:
    """Return JSON data that fits a type's schema as an instance of the type.

    Raises:
        OutputError: The type itself refuses it (a pydantic validator, a __post_init__).
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        return build(arguments[0], value)
    if origin in (Union, types.UnionType):
        member = next((member for member in arguments if fits(value, json_schema(member))), arguments[0])
        return build(member, value)
    if origin in _LISTS:
        items = [build(arguments[0], item) for item in value]
        return origin(items) if origin in (set, frozenset) else items
    if origin is tuple:
        members = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(build(member, item) for member, item in zip(members, value, strict=True))
    if origin in _DICTS:
        return {key: build(arguments[1], item) for key, item in value.items()}
    if not isinstance(hint, type):
        return value
    try:
        if issubclass(hint, enum.Enum):
            return next(member for member in hint if to_plain(member) == value)
        if hasattr(hint, "model_validate"):
            return hint.model_validate(value)
        if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
            fields = _fields(hint)
            return hint(**{key: build(fields[key], item) for key, item in value.items()})
        if issubclass(hint, datetime.date):
            return hint.fromisoformat(value)
    except (ValueError, TypeError) as error:
        raise OutputError(
            f"{hint.__name__} refuses {json.dumps(value, ensure_ascii=False)}: {error}"
        ) from error
    return float(value) if hint is float else value


def _fields(hint: Any) -> dict[str, Any]:
    """Return the type hints of what a record is made of; a dataclass's fields outside __init__ are left out."""
    hints = typing.get_type_hints(hint, include_extras=True)
    if dataclasses.is_dataclass(hint):
        return {field.name: hints[field.name] for field in dataclasses.fields(hint) if field.init}
    return hints


def _required(hint: Any) -> list[str]:
    if dataclasses.is_dataclass(hint):
        missing = dataclasses.MISSING
        return [
            f.name for f in dataclasses.fields(hint)
            if f.init and f.default is missing and f.default_factory is missing
        ]  # fmt: skip
    # Where annotations are texts, __required_keys__ has not seen the NotRequired inside.
    return [
        key
        for key, member in _fields(hint).items()
        if typing.get_origin(member) is not typing.NotRequired and key in hint.__required_keys__
    ]


def _own_docstring(hint: Any) -> str:
    # A dataclass without a docstring gets its signature for one.
    text = hint.__doc__ or ""
    return "" if text.startswith(f"{hint.__name__}(") else text


def _choices(values: list[Any]) -> dict[str, Any]:
    kinds = {type(value) for value in values}
    schema: dict[str, Any] = {"enum": values}
    return {"type": _PLAIN[kinds.pop()]["type"], **schema} if len(kinds) == 1 else schema


def _with_default(schema: dict[str, Any], default: Any) -> dict[str, Any]:
    return {**schema, "default": to_plain(default)} if default is not None else schema
