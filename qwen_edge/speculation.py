"""Speculation: several tokens of a reply evaluated in one call, where they can be guessed.

::

    reply so far  … a b c │ proposed: d e f        one call over c d e f keeps the logits behind each of them
                          └ drawn from the logits behind c: d   came true, the next logits are there already
                            drawn from those behind d: x        another one: e and f are cut out of the KV cache

The decode loop draws every token itself, from logits that the model computed for just that text; all that changes is how
many tokens one call took. So sampling, penalties, grammars, limits and endings are those of the loop without it.

What it cannot promise is the last digits. llama.cpp multiplies with the keys and values of one token by another kernel than
with those of several; on Qwen2.5-0.5B that moves the distance of the two best logits by 0.05 (median) and at most 0.5, and
1 token in 100 of a reply is that near to another one. There the text may go on differently, as it may with another build.
In the samples taken with flash attention logits were equal to the bit: of 2 to 9 tokens with AMX, of up to 3 without.

It is meant never to lose: see speculation_gain.py.

Source: speculative decoding (arXiv 2211.17192), here without its own sampling: a proposal counts where the sampler draws it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from qwen_edge.config import SpeculationMode
from qwen_edge.engines.base import Context, Engine
from qwen_edge.errors import CancelledError, ClosedError
from qwen_edge.speculation_draft import DraftProposer
from qwen_edge.speculation_gain import Acceptance, Balance, CallCosts, best_count
from qwen_edge.speculation_lookup import PromptLookup
from qwen_edge.speculation_proposer import Proposal, Proposer
from qwen_edge.types import SpeculationUse

# Tokens proposed at a time.
MOST_PROPOSED = 15


class Speculation:
    """Stands between the decode loop and a context: takes the tokens of a reply, evaluates ahead where that pays.

    What it has learned about costs and chances stays from reply to reply of a session.
    """

    def __init__(self, context: Context, proposer: Proposer) -> None:
        """Begin a session.

        Args:
            context: Keeps the logits of several tokens.
            proposer: Closed with this.
        """
        assert context.most_kept_logits > 1, "Bug: speculation in a context that cannot"
        self._context = context
        self._proposer = proposer
        self._acceptance = Acceptance()
        self._costs = CallCosts()
        self._balance = Balance()
        self._ahead: list[Proposal] = []  # evaluated, and not drawn yet
        self._length = 0  # tokens of the text; the cache may hold more
        self._row = 0
        self._call_s = 0.0  # of the call whose logits are in use; 0.0 when it was over one token
        self._guess: Proposal | None = None  # not evaluated
        self._is_cancelled = False
        self.proposed_tokens = self.accepted_tokens = 0

    @property
    def use(self) -> SpeculationUse:
        """Whether it is on, or has switched itself off."""
        return "switched_off" if self._balance.is_paused else "on"

    def begin(self, tokens: Sequence[int]) -> None:
        """Begin a reply, with its whole prompt in the KV cache."""
        self._ahead, self._guess, self._row, self._call_s = [], None, 0, 0.0
        self._length = len(tokens)
        self.proposed_tokens = self.accepted_tokens = 0
        self._proposer.follow(tokens)

    def step(self, token: int, most_ahead: int) -> None:
        """Take the token that was drawn, and see to the logits behind it.

        Args:
            token: Its id.
            most_ahead: How many more of the reply could still be of use.

        Raises:
            CancelledError, ContextOverflowError: As Context.append(); the cache holds the text without this token.
        """
        if self._is_cancelled:
            raise CancelledError("cancelled between two tokens")
        self._balance.pass_token()
        if self._ahead:
            proposal = self._ahead.pop(0)
            self._acceptance.note(proposal.kind, proposal.token == token)
            if proposal.token == token:
                self._row += 1
                self._context.select(self._row)
                self.accepted_tokens += 1
                self._length += 1
                self._proposer.extend((token,))
                return
        elif self._guess is not None:
            self._acceptance.note(self._guess.kind, self._guess.token == token)
        self.settle()
        self._proposer.extend((token,))
        self._evaluate(token, most_ahead)
        self._length += 1

    def settle(self) -> None:
        """Cut what did not come true out of the KV cache, and note what the call has earned."""
        if self._call_s:
            plain_s = self._costs.plain_s
            self._balance.note(self._row + 1 - self._call_s / plain_s)
            self._call_s = 0.0
            self._context.rewind(self._length)
        self._ahead, self._guess, self._row = [], None, 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Take tokens that the caller evaluated, after settle()."""
        self._length += len(tokens)
        self._proposer.extend(tokens)

    def end(self) -> None:
        """End the reply: the KV cache holds its tokens and no others."""
        with contextlib.suppress(ClosedError):
            self.settle()

    def cancel(self) -> None:
        """End what the proposer is doing, and take no more tokens, also of those that are evaluated. From any thread."""
        self._is_cancelled = True
        self._proposer.cancel()

    def clear_cancel(self) -> None:
        """Forget an earlier cancel()."""
        self._is_cancelled = False
        self._proposer.clear_cancel()

    def close(self) -> None:
        """Free what the proposer holds."""
        self._proposer.close()

    def _evaluate(self, token: int, most_ahead: int) -> None:
        """Evaluate a token, with what is proposed behind it where that pays."""
        context, costs = self._context, self._costs
        start = time.perf_counter()
        proposals = self._proposals(min(most_ahead, context.most_kept_logits - 1, MOST_PROPOSED))
        proposed_s = time.perf_counter() - start - self._proposer.uncounted_s()
        start = time.perf_counter()
        if proposals:
            context.append_all([token, *(each.token for each in proposals)])
        else:
            context.append((token,))
        call_s = time.perf_counter() - start
        costs.note(len(proposals) + 1, call_s)
        if proposals:
            self._call_s = call_s + proposed_s
            self._ahead = list(proposals)
            self.proposed_tokens += len(proposals)
        elif costs.plain_s and not self._proposer.is_free:
            self._balance.note(-proposed_s / costs.plain_s)

    def _proposals(self, most: int) -> Sequence[Proposal]:
        """Return what is worth evaluating behind the text."""
        may_gain = most > 0 and not self._costs.wants_plain and not self._balance.is_paused
        if not may_gain and not self._proposer.is_free:
            return ()
        found = self._proposer.propose(max(most, 1))
        self._guess = found[0] if found else None
        if not may_gain:
            return ()
        return found[: best_count([each.kind for each in found], self._acceptance, self._costs)]


def new_speculation(
    engine: Engine, context: Context, mode: SpeculationMode, draft: Engine | None
) -> Speculation | None:
    """Return what speculates in a session; None where nothing is to be, or the context cannot.

    Args:
        engine: The model.
        context: The session's.
        mode: What is wanted.
        draft: A small model of the same vocabulary, which then proposes.

    Raises:
        NativeError: No memory for the draft model's KV cache.
    """
    if mode == "off" or context.most_kept_logits < 2:
        return None
    return Speculation(context, PromptLookup() if draft is None else DraftProposer(draft))
