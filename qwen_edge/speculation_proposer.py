"""What guesses how a reply goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Proposal:
    """A token that may come.

    Attributes:
        token: Its id.
        kind: What its chances are learned by: see speculation_gain.Acceptance.
    """

    token: int
    kind: int


class Proposer(ABC):
    """Guesses how a text goes on."""

    is_free: bool
    """Whether a guess costs nothing worth counting."""

    @abstractmethod
    def follow(self, tokens: Sequence[int]) -> None:
        """Take a whole text in place of the one before, with which it may have a beginning in common."""

    @abstractmethod
    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens to the text."""

    @abstractmethod
    def propose(self, most: int) -> Sequence[Proposal]:
        """Return the tokens that may come next, at most so many."""

    @abstractmethod
    def uncounted_s(self) -> float:
        """Return the seconds of the last propose() that went into reading a prompt, which is done once."""

    @abstractmethod
    def cancel(self) -> None:
        """End the propose() in flight, and later ones, with CancelledError. Callable from any thread."""

    @abstractmethod
    def clear_cancel(self) -> None:
        """Forget an earlier cancel()."""

    @abstractmethod
    def close(self) -> None:
        """Free what it holds."""
