"""Turns from a person at a terminal: line editing, history, completion of commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.output.defaults import create_output

from qwen_edge.cli.chat.commands import BY_NAME, COMMANDS
from qwen_edge.cli.chat.history_file import BoundedHistory
from qwen_edge.cli.chat.reading import is_open, unquoted
from qwen_edge.cli.output import wants_colour
from qwen_edge.cli.stream import tell


class PromptReader:
    """Reads turns with prompt_toolkit.

    Enter sends; Alt-Enter and a backslash at the end add a line, and so does Enter inside a block. What is pasted stays
    one turn.
    """

    def __init__(
        self, history_path: Path | None, *, source: Input | None = None, output: Output | None = None
    ) -> None:
        """Open the terminal.

        Args:
            history_path: File of what was typed before; None keeps none.
            source: Where keys come from; None for the terminal.
            output: Where they are shown; None for the terminal: stdout, or stderr where only that is one.
        """
        self._file = BoundedHistory(history_path) if history_path else None
        self._has_told = False
        history: History = self._file or InMemoryHistory()
        self._prompt: PromptSession[str] = PromptSession(
            "> ",
            prompt_continuation=_continuation,
            multiline=True,
            history=history,
            completer=CommandCompleter(),
            complete_while_typing=False,
            key_bindings=_key_bindings(),
            color_depth=None if wants_colour(sys.stderr) else ColorDepth.DEPTH_1_BIT,
            input=source,
            output=output or create_output(always_prefer_tty=True),
        )

    def read(self, draft: str = "") -> str | None:
        """See Reader.read."""
        while True:
            self._tell_problem()
            try:
                return unquoted(self._prompt.prompt(default=draft))
            except EOFError:
                return None
            except KeyboardInterrupt:
                tell("(Ctrl-D or /exit leaves)")
                draft = ""

    def _tell_problem(self) -> None:
        if self._file is not None and self._file.problem and not self._has_told:
            self._has_told = True
            tell(f"(what you type is not kept for the next time: {self._file.problem})")


class CommandCompleter(Completer):
    """Completes the names of commands, and paths behind those that take one."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what may stand at the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, blank, argument = text[1:].partition(" ")
        if blank:
            command = BY_NAME.get(name.lower())
            if command is not None and command.takes_path:
                yield from self._paths.get_completions(Document(argument), complete_event)
            return
        for command in COMMANDS:
            if command.name.startswith(name.lower()):
                yield Completion(
                    f"/{command.name}",
                    start_position=-len(text),
                    display=command.usage,
                    display_meta=command.summary,
                )


def _continuation(width: int, line_number: int, wrap_count: int) -> str:
    """Return what stands before a further line: a dot, unless the terminal alone has broken the line."""
    return "  " if wrap_count else ". "


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        document = buffer.document
        if document.is_cursor_at_the_end and document.text.endswith("\\") and not is_open(document.text):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        elif is_open(document.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _add_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
