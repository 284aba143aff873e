"""What the shell offers for a model's name: those of the catalog, what is here, types behind "@", files."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


def complete_model(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer models by name, with "@" their types, and GGUF files of this folder; other files are left to the shell."""
    from pathlib import Path

    from qwen_edge.catalog import MODELS
    from qwen_edge.quant_types import FILE_TYPES

    name, at, _ = incomplete.partition("@")
    if at:
        found = _here(name) or [f"{name}@{kind}" for kind in FILE_TYPES]
        return _beginning_with(incomplete, found)
    files = [path.name for path in sorted(Path().glob("*.gguf"))]
    return [CompletionItem(incomplete, type="file"), *_beginning_with(incomplete, [*MODELS, *files])]


def complete_stored(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer what `qwen-edge rm` would find."""
    return [CompletionItem(incomplete, type="file"), *_beginning_with(incomplete, _here(""))]


def _here(name: str) -> list[str]:
    from qwen_edge.stored import stored_models

    names = {item.name for item in stored_models()}
    return sorted(found for found in names if not name or found.lower().startswith(f"{name.lower()}@"))


def _beginning_with(incomplete: str, names: list[str]) -> list[CompletionItem]:
    """Return the names that begin so in either case; types in the case that is typed."""
    types_in_lower_case = incomplete.partition("@")[2].islower()
    found = [name for name in dict.fromkeys(names) if name.lower().startswith(incomplete.lower())]
    return [CompletionItem(name.lower() if types_in_lower_case else name) for name in found]
