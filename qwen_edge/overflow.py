"""What becomes of a conversation that has grown beyond the context."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from qwen_edge import history
from qwen_edge.chat.template import opens_thought
from qwen_edge.config import GREEDY
from qwen_edge.engines.base import Engine
from qwen_edge.errors import CancelledError, ConfigError, ContextOverflowError
from qwen_edge.generation import GenerationRequest, Meter, Outcome, TokenCache, generate
from qwen_edge.types import Message

OverflowMode = Literal["error", "drop_oldest", "summarise"]
OnDrop = Callable[[tuple[Message, ...]], None]
Render = Callable[[Sequence[Message]], str]

# Turns are dropped when less than this share of the context is left for the reply, and then so many that the prompt
# fills at most half: each drop changes the prompt near its beginning, and what follows is evaluated again.
_REPLY_SHARE = 4
_TARGET_SHARE = 2
# A summary takes at most this share of the context, and never more tokens than the second number.
_SUMMARY_SHARE = 8
_MAX_SUMMARY_TOKENS = 256
# English text of Qwen's vocabulary has about 1.3 tokens a word; said as a round number that leaves a margin.
_TOKENS_PER_WORD = 2


class TurnsDroppedWarning(UserWarning):
    """Turns were taken out of a conversation that did not fit, and there is no on_drop to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverflowPolicy:
    """How a session makes room.

    Attributes:
        mode: "error" raises ContextOverflowError, "drop_oldest" takes the oldest turns out, "summarise" has the model
            itself put what it said there in a few sentences, which take their place.
        on_drop: Is told the messages that were taken out, each time; without it a TurnsDroppedWarning says how many.
    """

    mode: OverflowMode = "error"
    on_drop: OnDrop | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(OverflowMode):
            raise ConfigError(
                f"on_overflow must be one of {', '.join(get_args(OverflowMode))} (not {self.mode!r})"
            )

    def wants_room(self, n_prompt: int, n_ctx: int, max_tokens: int | None) -> bool:
        """Return whether turns are to be dropped before a prompt of this length is answered."""
        room = n_ctx // _REPLY_SHARE
        if max_tokens is not None:
            room = min(room, max_tokens)
        return self.mode != "error" and n_prompt + room > n_ctx

    def make_room(
        self,
        engine: Engine,
        cache: TokenCache,
        messages: list[Message],
        n_added: int,
        render: Render,
        render_for_summary: Render,
    ) -> None:
        """Take the oldest turns out of a conversation, and say so.

        Args:
            engine: For its tokenizer.
            cache: Where a summary is generated: what is summarised is in there already.
            messages: The conversation, changed in place; its system message stays.
            n_added: Messages at its end that are to be answered; the turn that they belong to stays.
            render: Makes a prompt of a conversation.
            render_for_summary: The same, without thinking.

        Raises:
            ContextOverflowError: That turn alone does not fit; nothing is changed.
            CancelledError: Cancelled while the summary was generated; nothing is changed.
        """
        n_ctx = cache.context.n_ctx

        def count(conversation: Sequence[Message]) -> int:
            return len(engine.tokenize(render(conversation)))

        cut = plan_cut(self.mode, messages, n_added, n_ctx, count)
        head = history.head_length(messages)
        dropped = messages[head:cut]
        if not dropped:
            return
        kept = [*messages[:head], *messages[cut:]]
        if self.mode == "summarise":
            summary = _summarise(engine, cache, messages[:head], dropped, render_for_summary)
            with_summary = [*messages[:head], *summary, *messages[cut:]]
            if summary and count(with_summary) < n_ctx:
                kept = with_summary
        messages[:] = kept
        if self.on_drop is not None:
            self.on_drop(tuple(dropped))
        else:
            warnings.warn(
                f"the conversation has outgrown the context: its oldest {len(dropped)} messages were taken out",
                TurnsDroppedWarning,
                stacklevel=2,
            )


def plan_cut(
    mode: OverflowMode,
    messages: Sequence[Message],
    n_added: int,
    n_ctx: int,
    count: Callable[[Sequence[Message]], int],
) -> int:
    """Return before which message a conversation is cut; its head stays. 0 when there is nothing to drop.

    Args:
        mode: Of the policy; a summary needs room too.
        messages: The conversation, the turn to be answered included.
        n_added: Messages at the end that are this turn's; the turn that they belong to is never dropped.
        n_ctx: Tokens that the context holds.
        count: Tokens of a conversation, as a prompt.

    Raises:
        ContextOverflowError: The turn alone does not fit.
    """
    head = list(messages[: history.head_length(messages)])
    target = n_ctx // _TARGET_SHARE
    if mode == "summarise":
        target -= summary_tokens(n_ctx)
    cut, n_prompt = 0, count(messages)
    for end in history.droppable_ends(messages, n_added):
        cut, n_prompt = end, count([*head, *messages[end:]])
        if n_prompt <= target:
            break
    if n_prompt >= n_ctx:
        raise ContextOverflowError(
            f"this turn alone is {n_prompt} tokens long, with the system message and the tools, and the context holds {n_ctx}",
            hint=f"Load with n_ctx above {n_prompt}, or say less at once.",
        )
    return cut


def summary_tokens(n_ctx: int) -> int:
    """Return the most tokens of a summary."""
    return min(_MAX_SUMMARY_TOKENS, n_ctx // _SUMMARY_SHARE)


def _summarise(
    engine: Engine, cache: TokenCache, head: Sequence[Message], dropped: Sequence[Message], render: Render
) -> list[Message]:
    """Return one message with the model's own summary of some turns; none where it has none to give.

    Of more turns than the context holds the last ones are summarised.

    Raises:
        CancelledError: cancel() was called.
    """
    n_ctx = cache.context.n_ctx
    max_tokens = summary_tokens(n_ctx)
    request = Message(
        "user",
        f"Summarise our conversation so far in at most {max(10, max_tokens // _TOKENS_PER_WORD)} words. "
        "Keep names, numbers, decisions and open questions. Write nothing but the summary.",
    )
    for start in (0, *(start for start in history.turn_starts(dropped) if start > 0)):
        prompt = render([*head, *dropped[start:], request])
        tokens = engine.tokenize(prompt)
        if len(tokens) + max_tokens <= n_ctx:
            break
    else:
        return []
    outcome = Outcome()
    generation = GenerationRequest(
        tokens=tokens, sampling=GREEDY, max_tokens=max_tokens, starts_thinking=opens_thought(prompt)
    )
    collections.deque(generate(engine, cache, generation, Meter(), outcome), maxlen=0)
    assert outcome.reply is not None, "Bug: generate() leaves a reply"
    if outcome.reply.finish_reason == "cancelled":
        raise CancelledError("cancelled while the earlier conversation was summarised")
    text = outcome.reply.text.strip()
    return [history.summary_message(text)] if text else []
