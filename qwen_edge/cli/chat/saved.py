"""Conversations in files: /save and /load."""

from __future__ import annotations

import warnings
from pathlib import Path

from qwen_edge.cli.chat.conversation import Conversation
from qwen_edge.cli.chat.screen import shortened
from qwen_edge.cli.chat.transcript import turns_text
from qwen_edge.cli.output import format_bytes
from qwen_edge.cli.stream import tell
from qwen_edge.errors import ConfigError, UnsupportedError
from qwen_edge.kv_fingerprint import differences, kv_fingerprint
from qwen_edge.session_file import StateRebuiltWarning, read_session
from qwen_edge.state_file import is_state_file

_SHOWN_CHARACTERS = 60


def save(conversation: Conversation, argument: str) -> None:
    """Write the conversation to a file; a file that is no saved conversation is left alone.

    Raises:
        ConfigError: There is one.
        OSError: It cannot be written.
    """
    path = Path(argument).expanduser()
    if path.is_file() and path.stat().st_size and not is_state_file(path):
        raise ConfigError(
            f"{path} is there and no saved conversation", hint="Choose another name, or remove it."
        )
    session = conversation.session
    session.save(path)
    size = format_bytes(path.stat().st_size)
    tell(
        f"saved {turns_text(session.messages)} to {path} ({size}). The text in it is readable for whoever has the file."
    )


def load(conversation: Conversation, argument: str) -> None:
    """Go on with a saved conversation in place of the one so far.

    Raises:
        UnsupportedError: Another model had it.
        FormatError: The file is damaged, or something else.
        OSError: It cannot be read.
    """
    path = Path(argument).expanduser()
    model, old = conversation.model, conversation.session
    _, _, content = read_session(path)
    theirs, ours = content.facts.get("fingerprint"), kv_fingerprint(model.engine, model.template)
    if theirs and ours and "weights" in differences(theirs, ours):
        raise UnsupportedError(
            f"{path} was saved with another model file than this one ({model.info.name or 'without a name'})",
            hint=f"Start the chat with that model: qwen-edge chat MODEL --load {path}",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StateRebuiltWarning)  # said below, in words of the chat
        session = model.restore_session(path)
    # The file holds the schemas of tools; their functions may be loaded here.
    functions = {
        tool["function"]["name"]: tool for tool in old.tools if tool["function"]["name"] in old.functions
    }
    if session.tools and all(functions.get(tool["function"]["name"]) == tool for tool in session.tools):
        session.functions = old.functions
    else:
        conversation.tools_file = None
    conversation.take_session(session)
    cost = (
        f"It is read anew with the next message, since it was saved with another {session.rebuilt_because}."
        if session.rebuilt_because
        else "It goes on where it was, without reading it again."
    )
    tell(f"restored {turns_text(session.messages)} from {path}. {cost}")
    if session.messages:
        last = session.messages[-1]
        who = {"user": "you", "assistant": "the model"}.get(last.role, last.role)
        tell(f"  last, {who}: {shortened(last.content, _SHOWN_CHARACTERS)}")
    if session.tools and not session.functions:
        names = ", ".join(tool["function"]["name"] for tool in session.tools)
        tell(f"  Its tools ({names}) have no functions here: /tools FILE.py brings them.")
