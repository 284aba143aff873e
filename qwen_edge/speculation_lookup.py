"""Proposals from the text itself: what followed the last time that the same tokens stood here.

Source: prompt lookup decoding, as in github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_edge.speculation_proposer import Proposal, Proposer

# Lengths of the n-grams that are looked for, the longest first.
_LENGTHS = (4, 3, 2)
# A match is followed back so far: what is longer is no better a sign.
_LONGEST_MATCH = 32
# Above every token id: a key of n tokens is a number with n digits of this base, none of them 0.
_BASE = 1 << 24


@dataclass(frozen=True, slots=True)
class Match:
    """An earlier place in a text that reads like its end.

    Attributes:
        place: Index of the token behind it.
        length: How many tokens are equal before it, at most _LONGEST_MATCH.
    """

    place: int
    length: int


class NgramIndex:
    """A text of tokens that knows, for its end, where the same n tokens stood last. A token costs the same at any length.

    For each n-gram there is the place behind its last occurrence, and for each place the one that was known before: the
    match of the end is read off that, and the text can be cut again.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._last: dict[int, int] = {}
        self._before: dict[int, list[int]] = {length: [] for length in _LENGTHS}

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens at the end."""
        text, last = self.tokens, self._last
        for token in tokens:
            text.append(token)
            place = len(text)
            for length, before in self._before.items():
                if place < length:
                    before.append(0)
                    continue
                key = self._key(place, length)
                before.append(last.get(key, 0))
                last[key] = place

    def cut(self, n_tokens: int) -> None:
        """Keep the first n_tokens, as if the others had never been there."""
        for place in range(len(self.tokens), n_tokens, -1):
            for length, before in self._before.items():
                earlier = before.pop()
                if place < length:
                    continue
                if earlier:
                    self._last[self._key(place, length)] = earlier
                else:
                    del self._last[self._key(place, length)]
        del self.tokens[n_tokens:]

    def match(self) -> Match | None:
        """Return the last place that reads like the end, by the longest n-gram that occurs; None when none does."""
        text, end = self.tokens, len(self.tokens)
        for length, before in self._before.items():
            place = before[-1] if before else 0
            if place:
                while (
                    length < min(place, _LONGEST_MATCH) and text[place - length - 1] == text[end - length - 1]
                ):
                    length += 1
                return Match(place, length)
        return None

    def continuation(self, place: int, count: int) -> list[int]:
        """Return the tokens from a place on; where the text ends they go on as those that were given."""
        text = self.tokens
        found = text[place : place + count]
        period = len(text) - place
        while len(found) < count:
            found.append(found[len(found) - period])
        return found

    def _key(self, place: int, length: int) -> int:
        key = 0
        for token in self.tokens[place - length : place]:
            key = key * _BASE + token + 1
        return key


class PromptLookup(Proposer):
    """Proposes what followed the same tokens earlier, in the prompt or in the reply."""

    is_free = True

    def __init__(self) -> None:
        self._index = NgramIndex()

    def follow(self, tokens: Sequence[int]) -> None:
        """See Proposer.follow."""
        index = self._index
        pairs = zip(index.tokens, tokens, strict=False)
        n_common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(index.tokens), len(tokens)))
        index.cut(n_common)
        index.extend(tokens[n_common:])

    def extend(self, tokens: Sequence[int]) -> None:
        """See Proposer.extend."""
        self._index.extend(tokens)

    def propose(self, most: int) -> Sequence[Proposal]:
        """See Proposer.propose."""
        match = self._index.match()
        if match is None:
            return ()
        found = self._index.continuation(match.place, most)
        return [Proposal(token, match.length + i) for i, token in enumerate(found)]

    def uncounted_s(self) -> float:
        """See Proposer.uncounted_s."""
        return 0.0

    def cancel(self) -> None:
        """See Proposer.cancel: it never takes long."""

    def clear_cancel(self) -> None:
        """See Proposer.clear_cancel."""

    def close(self) -> None:
        """See Proposer.close."""
