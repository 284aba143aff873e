"""What can be said about a reply beside the turn itself: one list of keywords for every way to ask.

All are optional, and None is as good as nothing. A new one is added here, and where it takes effect.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from qwen_edge.chat.constraint import Guide
from qwen_edge.config import SamplingConfig, ThinkingLike
from qwen_edge.errors import ConfigError
from qwen_edge.logprobs import check_alternatives


class ReplyOptions(TypedDict, total=False):
    """Keywords of send(), run(), regenerate() and the like; Session.stream() tells what they mean."""

    thinking: ThinkingLike | None
    max_tokens: int | None
    sampling: SamplingConfig | None
    timeout_s: float | None
    logprobs: int | None


class StreamOptions(ReplyOptions, total=False):
    """Keywords of stream()."""

    guide: Guide | None


class ExtractOptions(ReplyOptions, total=False):
    """Keywords of extract() with a type."""

    show_schema: bool


class FormOptions(ExtractOptions, total=False):
    """Keywords of extract() with any form; Session.extract() tells what they mean."""

    regex: str | None
    choice: Sequence[str] | None
    grammar: str | None


def check_options(options: Mapping[str, Any]) -> None:
    """Check the keywords of a reply before anything is done.

    Raises:
        TypeError: There is no such keyword.
        ConfigError: A value is out of range.
    """
    unknown = sorted(set(options) - StreamOptions.__optional_keys__)
    if unknown:
        known = ", ".join(sorted(StreamOptions.__optional_keys__))
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; there are: {known}")
    max_tokens, timeout_s = options.get("max_tokens"), options.get("timeout_s")
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens must be at least 1 (not {max_tokens})")
    if timeout_s is not None and not 0 < timeout_s <= threading.TIMEOUT_MAX:
        raise ConfigError(f"timeout_s must be above 0 (not {timeout_s!r})")
    check_alternatives(options.get("logprobs"))
