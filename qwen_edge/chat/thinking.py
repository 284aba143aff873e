r"""Thinking that ends: which mode a turn is in, when its thought is closed, and that an answer follows.

::

    <think> … … …  budget, reserve, loop or end token
                   └─ fed by the engine:  I have thought enough, so I answer now.\n</think>\n\n   then the model answers

Pure: no engine inside. `generation.generate` asks a ReplyGuard at every token.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen_edge.chat.loops import ANSWER_LOOPS, THOUGHT_LOOPS, LoopDetector
from qwen_edge.chat.parser import THINK_CLOSE
from qwen_edge.chat.template import ThinkingSupport
from qwen_edge.config import ThinkingConfig, ThinkingMode
from qwen_edge.errors import UnsupportedError
from qwen_edge.types import FinishReason, Message, ThoughtCut

# A word of its own: "/think", not "/thinking" and not "a/think".
_SWITCH = re.compile(r"(?<!\S)/(no_)?think(?!\S)")

_MIN_ANSWER_TOKENS, _MAX_ANSWER_TOKENS = 32, 512
# The sentence is left out where it would take a larger share of the limit than this.
_MAX_CLOSING_SHARE = 0.25
# A model that opens thought after thought once they are closed is not going to answer.
_MAX_CLOSINGS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingPlan:
    """What becomes of a turn's `thinking` argument, with the model and the text in view.

    Attributes:
        mode: The mode in effect: "on", "off", or "auto" where it is the template's own choice.
        enable_thinking: Value of the template's switch; None leaves it undefined.
        limits: What holds while the reply is generated.
        hides_no_think: An explicit "on" overrules a `/no_think` in the text, which the model then must not see.
    """

    mode: ThinkingMode
    enable_thinking: bool | None
    limits: ThinkingConfig
    hides_no_think: bool = False

    def visible(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages as the model is to read them."""
        if not self.hides_no_think:
            return list(messages)
        return [
            dataclasses.replace(message, content=_without_no_think(message.content))
            if message.role in ("user", "system")
            else message
            for message in messages
        ]


def soft_switch(messages: Sequence[Message]) -> ThinkingMode | None:
    """Return what the last `/think` or `/no_think` in the user's or the system's text asks for, None without one.

    Source: Qwen3's model card: the model follows the most recent instruction of several turns.

    Example:
        >>> soft_switch([Message("user", "Hi /no_think"), Message("user", "And 3 + 4? /think")])
        'on'
    """
    for message in reversed(messages):
        found = _SWITCH.findall(message.content) if message.role in ("user", "system") else []
        if found:
            return "off" if found[-1] else "on"
    return None


def plan_thinking(
    config: ThinkingConfig, support: ThinkingSupport, messages: Sequence[Message], *, model_name: str
) -> ThinkingPlan:
    """Decide whether a turn thinks.

    An explicit mode comes first, then a switch in the text, then the template's default. Switches mean nothing to a
    model that has no mode to choose from.

    Args:
        config: What was asked for.
        support: What the model can do.
        messages: The conversation with the new turn.
        model_name: For errors; "" when the file has none.

    Raises:
        UnsupportedError: "on" or a budget above 0 for a model that never thinks, "off" for one that always does. A
            budget holds for the latter, 0 included: its thought is closed where it opens.
    """
    name = model_name or "this model"
    if support is ThinkingSupport.NEVER and config.mode == "on":
        raise UnsupportedError(
            f"{name} does not think: its template has no thinking mode",
            hint='Leave thinking out, or use a Qwen3 model. (thinking="off" is fine.)',
        )
    if support is ThinkingSupport.ALWAYS and config.mode == "off" and config.budget is None:
        raise UnsupportedError(
            f"{name} always thinks: its template opens every answer with a thought",
            hint="Leave thinking out, or set a budget: thinking=64, or thinking=0 to close the thought at once.",
        )
    mode, hides = config.mode, False
    if support is ThinkingSupport.SWITCHED:
        switch = soft_switch(messages)
        if mode == "auto":
            mode = switch or "auto"
        hides = mode == "on" and switch == "off"
    elif support is ThinkingSupport.ALWAYS:
        mode = "on"
    else:
        mode = "off"
    enable = None if support is not ThinkingSupport.SWITCHED or mode == "auto" else mode == "on"
    # A model told not to think that opens a thought all the same is led out of it.
    asked_off = config.mode == "off" or enable is False
    limits = dataclasses.replace(config, mode="auto", budget=0) if asked_off else config
    return ThinkingPlan(mode=mode, enable_thinking=enable, limits=limits, hides_no_think=hides)


class ReplyGuard:
    """Watches one reply: closes its thought in time, and sees to it that an answer follows.

    Without a config it lets everything pass, as raw completion and measurements need it.
    """

    def __init__(
        self, config: ThinkingConfig | None, *, limit: int, tokenize: Callable[[str], Sequence[int]]
    ) -> None:
        """Begin a reply.

        Args:
            config: The limits, or None for none.
            limit: Most tokens of the reply: max_tokens, or what the context has left.
            tokenize: From text with tags to tokens.
        """
        self.cut: ThoughtCut | None = None
        self._config = config
        self._limit = limit
        self._used_tokens = self._thinking_tokens = self._closings = 0
        self._due: ThoughtCut | None = None
        self._has_retried = False
        if config is None:
            return
        self._short_closing = list(tokenize(f"\n{THINK_CLOSE}\n\n"))
        self._closing = list(tokenize(f"\n\n{config.closing}\n{THINK_CLOSE}\n\n"))
        if not config.closing or len(self._closing) > _MAX_CLOSING_SHARE * limit:
            self._closing = self._short_closing
        self._thought_limit = limit - answer_reserve(config, limit) - len(self._closing)
        self._thought_loops = LoopDetector(THOUGHT_LOOPS)
        self._answer_loops = LoopDetector(ANSWER_LOOPS)

    def closing(self, *, thinking: bool) -> Sequence[int]:
        """Return the tokens that close the thought here; none while it may go on.

        Args:
            thinking: Whether the reply is inside a thought.
        """
        if self._config is None or not thinking:
            return ()
        reason = self._due or self._exhausted(self._config)
        if reason is None:
            return ()
        # Where the model has not said a word, or ended of its own, a sentence about ending would be out of place.
        is_short = reason == "end" or self._thinking_tokens == 0
        tokens = self._short_closing if is_short else self._closing
        if self._used_tokens + len(tokens) >= self._limit:
            return ()  # not one token would be left for an answer: the limit ends the reply
        self.cut = self.cut or reason
        self._due = None
        self._closings += 1
        self._used_tokens += len(tokens)
        self._thought_loops = LoopDetector(THOUGHT_LOOPS)
        return tokens

    def _exhausted(self, config: ThinkingConfig) -> ThoughtCut | None:
        if config.budget is not None and self._thinking_tokens >= config.budget:
            return "budget"
        return "reserve" if self._used_tokens >= self._thought_limit else None

    def gives_up(self, token: int, *, was_thinking: bool, thinking: bool) -> bool:
        """Note a sampled token that ends nothing; return whether the reply is ended here because it leads nowhere.

        Args:
            token: The token.
            was_thinking: Whether the reply was inside a thought before it.
            thinking: Whether it is after it.
        """
        self._used_tokens += 1
        self._thinking_tokens += was_thinking
        if self._config is None:
            return False
        if thinking and self._closings >= _MAX_CLOSINGS:
            return True
        if not self._config.stop_loops:
            return False
        if not thinking:
            return self._answer_loops.feed(token)
        if self._thought_loops.feed(token):
            self._due = "loop"
        return False

    def goes_on(self, *, thinking: bool, answered: bool) -> bool:
        """Note an end token; return whether the reply goes on all the same.

        It does when it ended inside a thought, which is closed then, and once when nothing was said so far: the caller
        draws again, without that end token.

        Args:
            thinking: Whether the reply is inside a thought.
            answered: Whether there is text or a call besides thoughts.
        """
        self._used_tokens += 1
        if self._config is None:
            return False
        if thinking:
            self._due = "end"
            return self._closings < _MAX_CLOSINGS
        if answered or self._has_retried:
            return False
        self._has_retried = True
        return True

    def finish_reason(self, *, has_calls: bool, answered: bool, is_full: bool) -> FinishReason:
        """Return the reason of a reply that the model ended; is_full: with the last token that it had."""
        if has_calls:
            return "tool_calls"
        if self._config is None:
            return "stop"
        if not answered:
            return "length" if is_full else "loop"
        return "thinking_budget" if self.cut in ("budget", "reserve", "loop") else "stop"


def answer_reserve(config: ThinkingConfig, limit: int) -> int:
    """Return how many of a reply's tokens a thought may not use.

    Args:
        config: answer_tokens is used; None keeps a quarter, at least 32 and at most 512, but never more than half.
        limit: Most tokens of the reply.
    """
    if config.answer_tokens is not None:
        return min(config.answer_tokens, limit)
    share = min(max(limit // 4, _MIN_ANSWER_TOKENS), _MAX_ANSWER_TOKENS)
    return min(share, limit // 2)


def _without_no_think(text: str) -> str:
    """Return a text without `/no_think` and the blanks before it."""
    return re.sub(r"(?:^|[ \t]+|(?<=\n))/no_think(?!\S)", "", text)
