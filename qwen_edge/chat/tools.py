"""Python functions as tools: their schema for the model, their arguments from the model."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_edge.chat.coercion import coerce
from qwen_edge.chat.schema import build, function_schema, parameter_hints, to_plain
from qwen_edge.errors import ConfigError, OutputError, ToolError
from qwen_edge.types import ToolCall

ToolLike = Mapping[str, Any] | Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFunction:
    """A Python function that a model may call.

    Attributes:
        function: The function.
        schema: Name, description and parameters, as JSON schema.
        is_async: Calling it gives an awaitable.
    """

    function: Callable[..., Any]
    schema: dict[str, Any]
    is_async: bool

    @classmethod
    def of(cls, function: Callable[..., Any]) -> ToolFunction:
        """Return a function as a tool.

        Raises:
            ConfigError: Its parameters have no type hints, or types that JSON cannot carry.
        """
        return cls(
            function=function,
            schema=function_schema(function),
            is_async=inspect.iscoroutinefunction(function),
        )

    def arguments(self, call: ToolCall) -> dict[str, Any]:
        """Return the arguments of a call as the function takes them: checked, put right, built.

        Raises:
            ToolError: They do not fit the function's type hints. The message is fit for the model to read.
        """
        hints = parameter_hints(self.function)
        try:
            values = coerce(call.arguments, self.schema["parameters"])
            return {name: build(hints[name], value) for name, value in values.items()}
        except OutputError as error:
            raise ToolError(f"wrong arguments for {call.name}: {error.message}") from error


def split_tools(tools: Sequence[ToolLike]) -> tuple[list[Mapping[str, Any]], dict[str, ToolFunction]]:
    """Return the schemas of tools, and those that are functions by name.

    Args:
        tools: JSON schemas and functions.

    Raises:
        ConfigError: A function cannot be a tool, or two have one name.
    """
    schemas: list[Mapping[str, Any]] = []
    functions: dict[str, ToolFunction] = {}
    for tool in tools:
        if isinstance(tool, Mapping):
            schemas.append(tool)
            continue
        if not callable(tool):
            raise ConfigError(f"a tool must be a function or a JSON schema with a name (not {tool!r})")
        function = ToolFunction.of(tool)
        name = function.schema["name"]
        if name in functions:
            raise ConfigError(f"two tools are named {name!r}")
        functions[name] = function
        schemas.append(function.schema)
    return schemas, functions


def result_text(result: Any) -> str:
    """Return what a model reads of a tool's result: a text as it is, anything else as JSON."""
    return result if isinstance(result, str) else json.dumps(to_plain(result), ensure_ascii=False)


def error_text(message: str) -> str:
    """Return what a model reads of a call that failed."""
    return json.dumps({"error": message}, ensure_ascii=False)
