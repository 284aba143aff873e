"""Public names of a package that are imported when they are first used, so that importing the package loads nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    namespace: dict[str, Any], homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`.

    ::

        __getattr__, __dir__ = lazy_names(globals(), {"load": ".model"})

    Args:
        namespace: globals() of the package; a name is kept there once it has been asked for.
        homes: The module of each name, ".module" for one of the package's own.
    """
    package = namespace["__name__"]

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        namespace[name] = value = getattr(importlib.import_module(homes[name], package), name)
        return value

    def names() -> list[str]:
        return sorted({*namespace, *homes})

    return get, names
