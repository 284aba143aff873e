"""What a session does with its history besides growing it: change it, keep it, continue from it twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qwen_edge import history, session_file
from qwen_edge.chat.template import ChatTemplate
from qwen_edge.chat.tools import ToolFunction
from qwen_edge.engines.base import Engine
from qwen_edge.generation import TokenCache
from qwen_edge.kv_fingerprint import kv_fingerprint
from qwen_edge.overflow import OverflowPolicy
from qwen_edge.prefix_turn import SessionPrefixes
from qwen_edge.types import Message

if TYPE_CHECKING:
    from qwen_edge.model import Model
    from qwen_edge.session import Session


class SessionHistory:
    """The part of Session that these methods are about; not made by itself.

    Changing the history costs nothing at once: the next turn keeps the KV cache up to the first difference.
    """

    messages: list[Message]
    tools: tuple[dict[str, Any], ...]
    functions: dict[str, ToolFunction]
    constrained_calls: bool
    rebuilt_because: str = ""
    """Of a restored session: what made its saved KV cache useless; "" when it was used."""
    _engine: Engine
    _template: ChatTemplate
    _overflow: OverflowPolicy
    _prefixes: SessionPrefixes
    _new_session: Callable[..., Session] | None
    _idle_cache: Callable[[], TokenCache]

    @property
    def system(self) -> str | None:
        """The system message, None without one. Can be set; the conversation stays.

        ::

            session.system = "Answer in French."
        """
        return self.messages[0].content if history.head_length(self.messages) else None

    @system.setter
    def system(self, text: str | None) -> None:
        self._idle_cache()
        self.messages[:] = history.with_system(self.messages, text)

    def edit(self, index: int, text: str) -> tuple[Message, ...]:
        """Let a message say something else.

        ::

            session.edit(-2, "What is the capital of Peru?")
            reply = session.send([])  # an answer to what the history now ends with

        Args:
            index: Of the message in `messages`; negative ones count from the end.
            text: Its new content.

        Returns:
            The messages behind it: they answered what is no longer said and are taken out, except behind the system's.

        Raises:
            ConfigError: There is no such message, or a reply is being streamed.
        """
        self._idle_cache()
        self.messages[:], removed = history.edited(self.messages, index, text)
        return tuple(removed)

    def undo(self) -> tuple[Message, ...]:
        """Take the last turn out: what the user said last, and all that followed.

        Returns:
            What was taken out.

        Raises:
            ConfigError: There is no turn yet, or a reply is being streamed.
        """
        self._idle_cache()
        start = history.last_turn_start(self.messages)
        removed = self.messages[start:]
        del self.messages[start:]
        return tuple(removed)

    def branch(self) -> Session:
        """Return a second session that goes on from here: the KV cache is copied, nothing is evaluated again.

        Both have their own history from now on, and their own KV cache, allocated for n_ctx tokens; with n_sessions
        above 1 it takes one of these places. It is closed like any other session.

        ::

            with session.branch() as other:
                other.send("And if it rains?")

        Raises:
            NativeError: No memory for the KV cache.
            UnsupportedError: The engine cannot copy the memory of this model.
            ConfigError: A reply is being streamed, or all n_sessions are open.
        """
        tokens, state = self._idle_cache().save()
        assert self._new_session is not None, "Bug: a session that no model made"
        twin = self._new_session(
            tools=self.tools, constrained_calls=self.constrained_calls, overflow_policy=self._overflow
        )
        twin.functions = self.functions
        twin.messages[:] = self.messages
        twin._prefixes.marked = self._prefixes.marked
        try:
            twin._idle_cache().load(tokens, state)
        except BaseException:
            twin.close()  # its place may be one of few
            raise
        return twin

    def mark_prefix(self) -> None:
        """Mark the conversation so far as a beginning that will come again: examples, or a document to be asked about.

        From the next turn on, the prefix cache on disk keeps it as it keeps the system prompt with the tools. A later
        session that has the same messages, and marks them too, finds it there. The mark ends when they are changed.

        ::

            session.messages += [Message("user", f"The document: {text}"), Message("assistant", "I have read it.")]
            session.mark_prefix()
            session.send("Who signed it?")
        """
        self._prefixes.marked = tuple(self.messages)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a file: messages, tools and the KV cache, so that nothing needs to be evaluated again.

        The file is written whole or not at all. It holds the conversation in the clear.

        ::

            session.save("chat.session")
            session = model.restore_session("chat.session")  # in another process, another day

        Raises:
            OSError: It cannot be written.
            ConfigError: A reply is being streamed.
        """
        fingerprint = kv_fingerprint(self._engine, self._template)
        session_file.save_session(path, self.messages, self.tools, self._idle_cache(), fingerprint)

    @classmethod
    def restore(cls, model: Model, path: str | os.PathLike[str], **settings: Any) -> Session:
        """Return a session that save() wrote; the same as model.restore_session(path, **settings)."""
        return model.restore_session(path, **settings)
