"""A session's use of the prefix cache: where its prefixes end, and what a turn loads or keeps."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen_edge import history
from qwen_edge.chat.template import ChatTemplate
from qwen_edge.engines.base import Engine
from qwen_edge.errors import FormatError, InsufficientMemoryError, TemplateError, UnsupportedError
from qwen_edge.generation import Checkpoint, Meter, TokenCache
from qwen_edge.prefix_cache import PrefixCache
from qwen_edge.types import Message

# Two texts of a user that share no beginning: what precedes both is what precedes any.
_PROBES = (Message("user", "a"), Message("user", "b"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prewarmed:
    """What prewarm() did.

    Attributes:
        status: "stored", "present" (it was there already), "short" (below 256 tokens: not worth a file), "off" (switched
            off, or the engine cannot), or "failed" (the folder cannot be written, or the prefix exceeds its limit).
        prefix_tokens: Tokens of the system prompt and the tools.
        seconds: What it took.
    """

    status: Literal["stored", "present", "short", "off", "failed"]
    prefix_tokens: int
    seconds: float


class SessionPrefixes:
    """The prefixes of one session: its system prompt with the tools, and what mark_prefix() marked."""

    def __init__(self, engine: Engine, template: ChatTemplate, store: PrefixCache | None) -> None:
        """Look at nothing yet.

        Args:
            engine: For its tokenizer.
            template: Renders the prefixes.
            store: The cache; None where it is off.
        """
        self._engine = engine
        self._template = template
        self._store = store
        self._found: dict[Any, tuple[int, ...]] = {}
        self.marked: tuple[Message, ...] = ()

    def begin_turn(
        self,
        cache: TokenCache,
        prompt: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        enable_thinking: bool | None,
        meter: Meter,
    ) -> Checkpoint | None:
        """Load the longest prefix of a prompt that is on disk, where that brings the session on.

        Args:
            cache: The session's.
            prompt: Tokens of the whole prompt.
            messages: Conversation that was rendered.
            tools: On offer.
            enable_thinking: As it was rendered.
            meter: Learns what happened.

        Returns:
            Where prefill has to pause to keep a prefix that was not there; None when nothing is to be kept.
        """
        if self._store is None or not self._store.is_usable or len(prompt) >= cache.context.n_ctx:
            return None
        beginnings = [tuple(messages[: history.head_length(messages)])]
        if self.marked and self.marked == tuple(messages[: len(self.marked)]):
            beginnings.append(self.marked)
        prefixes = [
            prefix
            for beginning in beginnings
            if (prefix := self._prefix(beginning, tools, enable_thinking))
            and tuple(prompt[: len(prefix)]) == prefix
            and self._store.min_tokens <= len(prefix) < len(prompt)
        ]
        if not prefixes:
            meter.prefix_cache = "short"
            return None
        prefixes.sort(key=len, reverse=True)
        cached = cache.common_prefix(prompt)
        if cached >= len(prefixes[0]):
            meter.prefix_cache = "memory"
            return None
        loaded = next(
            (each for each in prefixes if len(each) > cached and self._load(each, cache, meter)), ()
        )
        meter.prefix_cache = "hit" if loaded else "miss"
        return None if loaded == prefixes[0] else self._checkpoint(prefixes[0], cache, self._store)

    def prewarm(
        self, cache: TokenCache, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> Prewarmed:
        """Evaluate the prefix of a new conversation and store it, unless it is there."""
        meter = Meter()
        start = time.perf_counter()

        def result(status: Literal["stored", "present", "short", "off", "failed"]) -> Prewarmed:
            return Prewarmed(status=status, prefix_tokens=len(prefix), seconds=time.perf_counter() - start)

        prefix = self._prefix(messages, tools, None)
        store = self._store
        if store is None or not store.is_usable:
            return result("off")
        if len(prefix) < store.min_tokens:
            return result("short")
        if self._load(prefix, cache, meter):
            return result("present")
        cache.prefill(prefix, meter)
        prefill_s = meter.prefill_seconds()
        tokens, state = cache.save()
        return result("stored" if store.store(tokens, state, prefill_s) else "failed")

    def _load(self, prefix: tuple[int, ...], cache: TokenCache, meter: Meter) -> bool:
        assert self._store is not None, "Bug: no store to load from"
        start = time.perf_counter()
        entry = self._store.load(prefix)
        if entry is None:
            return False
        try:
            cache.load(prefix, entry.state)
        except FormatError:  # whole, and yet the engine refuses it: it is of no use to anybody
            self._store.remove(prefix)
            return False
        meter.prefix_saved_s = entry.prefill_s - (time.perf_counter() - start)
        return True

    @staticmethod
    def _checkpoint(prefix: tuple[int, ...], cache: TokenCache, store: PrefixCache) -> Checkpoint:
        def keep(prefill_s: float) -> None:
            try:
                tokens, state = cache.save()
            except (UnsupportedError, InsufficientMemoryError):
                return
            assert tokens == prefix, "Bug: the pause is not where the prefix ends"
            store.store_later(tokens, state, prefill_s)

        return Checkpoint(len(prefix), keep)

    def _prefix(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        enable_thinking: bool | None,
    ) -> tuple[int, ...]:
        """Return the tokens that every prompt begins with that goes on from some messages; () where there are none.

        The last token before the user's text is left out: with what follows it may become another one.
        """
        # Messages hold dicts and cannot be hashed; their repr is theirs alone.
        key = (repr(tuple(messages)), repr(tools), enable_thinking)
        if key not in self._found:
            try:
                texts = [
                    self._template.render([*messages, probe], tools=tools, enable_thinking=enable_thinking)
                    for probe in _PROBES
                ]
            except TemplateError:
                texts = [""]
            common = os.path.commonprefix(texts)  # noqa: RUF071 - of texts, not of paths
            self._found = {
                **dict(list(self._found.items())[-3:]),
                key: tuple(self._engine.tokenize(common)[:-1]),
            }
        return self._found[key]
