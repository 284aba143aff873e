"""Tools for a chat: the functions of a Python file."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen_edge.chat.tools import split_tools
from qwen_edge.errors import ConfigError, ToolError

_MODULE = "qwen_edge_chat_tools"


def load_tools(path: Path) -> list[Callable[..., Any]]:
    """Run a Python file and return its functions: those in `__all__`, else all whose names begin with no underscore.

    The file runs as any program of the person does. No bytecode is written beside it.

    Raises:
        ToolError: It cannot be read or run.
        ConfigError: It has no function that can be a tool, or one without type hints.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ToolError(f"the tools in {path} cannot be read: {error.strerror or error}") from error
    module = types.ModuleType(_MODULE)
    module.__file__ = str(path)
    # Dataclasses and type hints look their module up there.
    sys.modules[_MODULE] = module
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        raise ToolError(
            f"{path}{_line_of(error, path)} does not run: {type(error).__name__}: {error}"
        ) from error
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    found = [vars(module).get(name) for name in names]
    functions = [_awaited(each) for each in found if inspect.isfunction(each) and each.__module__ == _MODULE]
    if not functions:
        raise ConfigError(
            f"{path} defines no function",
            hint="Each function becomes a tool: its name, type hints and docstring tell the model what it is for.",
        )
    try:
        split_tools(functions)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error.message}",
            hint=f"{error.hint or ''} A helper that is no tool gets a name that begins with _.".strip(),
        ) from error
    return functions


def _awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that waits for its result, where it is an async one."""
    if not inspect.iscoroutinefunction(function):
        return function

    @functools.wraps(function)
    def waits(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return waits


def _line_of(error: BaseException, path: Path) -> str:
    """Return ", line N" where a file's own line is to blame."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}" if error.lineno else ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {frames[-1].lineno}" if frames else ""
