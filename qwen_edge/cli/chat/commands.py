"""What begins with a slash: the table of commands, and what each does."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from qwen_edge.chat.template import ThinkingSupport
from qwen_edge.cli.chat import saved
from qwen_edge.cli.chat.conversation import Conversation
from qwen_edge.cli.chat.figures import stats_text
from qwen_edge.cli.chat.screen import shortened
from qwen_edge.cli.chat.transcript import transcript, turns_text
from qwen_edge.cli.options import parse_thinking
from qwen_edge.cli.stream import tell
from qwen_edge.config import thinking_config
from qwen_edge.errors import ConfigError

_COMMAND = re.compile(r"/([A-Za-z_]*)(?:\s+(.*))?", re.DOTALL)
_SHOWN_CHARACTERS = 60
_HELP = """
Ctrl-C ends an answer or drops what is typed, Ctrl-D leaves.
Several lines: a backslash at the end of a line or Alt-Enter adds one; three quotes (\"\"\") open and close a block.
A message that begins with a slash: //like this.
Qwen's own switch, /think or /no_think inside a message, works too; the command on a line of its own overrules it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlashCommand:
    """One command.

    Attributes:
        name: Without the slash.
        run: Does it, with what stands behind the name.
        summary: What it does, for /help.
        argument: What stands behind the name, as /help writes it; "" when nothing may.
        is_required: Something must.
        takes_path: It is the path of a file.
        aliases: Other names.
    """

    name: str
    run: Callable[[Conversation, str], None]
    summary: str
    argument: str = ""
    is_required: bool = False
    takes_path: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """The command as /help writes it."""
        return f"/{self.name} {self.argument}".rstrip()


@dataclass(frozen=True, slots=True)
class Typed:
    """A command that a person typed: its name without the slash, in lower case, and what stands behind it."""

    name: str
    argument: str


def parse(text: str) -> Typed | str:
    """Return what a turn is: a command, or what is said to the model.

    A word of letters behind a slash is a command, known or not; a path (/etc/hosts) is text, and so is all that begins
    with two slashes, of which one is taken away.

    Example:
        >>> parse("/system Be brief."), parse("//new is a command"), parse("/etc/hosts holds what?")
        (Typed(name='system', argument='Be brief.'), '/new is a command', '/etc/hosts holds what?')
    """
    if text.startswith("//"):
        return text[1:]
    match = _COMMAND.fullmatch(text)
    if match is None:
        return text
    return Typed(match[1].lower(), (match[2] or "").strip())


def run_command(conversation: Conversation, typed: Typed) -> None:
    """Do what a command says.

    Raises:
        ConfigError: There is no such command, or it is used wrongly.
        QwenEdgeError, OSError: It failed; the conversation is as before.
    """
    command = BY_NAME.get(typed.name)
    if command is None:
        near = difflib.get_close_matches(typed.name, BY_NAME, n=1)
        meant = f" Did you mean /{near[0]}?" if near else ""
        raise ConfigError(
            f"there is no command /{typed.name}.{meant}",
            hint="/help lists the commands. A message that begins with a slash is written with two: //like this.",
        )
    if command.is_required and not typed.argument:
        raise ConfigError(f"/{command.name} needs {command.argument}: {command.usage}")
    if typed.argument and not command.argument:
        raise ConfigError(
            f"/{command.name} takes nothing behind it (not {shortened(typed.argument, _SHOWN_CHARACTERS)!r})",
            hint=f"To send it as a message, begin with two slashes: //{command.name} …",
        )
    command.run(conversation, typed.argument)


def _help(conversation: Conversation, argument: str) -> None:
    width = max(len(command.usage) for command in COMMANDS) + 2
    for command in COMMANDS:
        tell(command.usage.ljust(width) + command.summary, indent=" " * width)
    tell(_HELP, indent="")


def _new(conversation: Conversation, argument: str) -> None:
    conversation.restart()
    session = conversation.session
    kept = (["system message"] if session.system else []) + (["tools"] if session.tools else [])
    tell("a new conversation" + (f" with the same {' and '.join(kept)}" if kept else ""))


def _system(conversation: Conversation, argument: str) -> None:
    session = conversation.session
    if not argument:
        tell(session.system if session.system else "no system message. /system TEXT sets one.")
        return
    session.system = None if argument == "off" else argument
    done = "the system message is taken out" if argument == "off" else "the system message is set"
    if any(message.role == "user" for message in session.messages):
        so_far = turns_text(session.messages)
        done += f"; the conversation so far ({so_far}) stays and is read anew with the next message"
    tell(done)


def _think(conversation: Conversation, argument: str) -> None:
    try:
        thinking = parse_thinking(argument or "on")
    except click.BadParameter:
        raise ConfigError(
            f"/think takes on, off, auto or a number of tokens (not {shortened(argument, _SHOWN_CHARACTERS)!r})",
            hint="To send it as a message, begin with two slashes: //think …",
        ) from None
    conversation.set_thinking(thinking)
    config = thinking_config(thinking)
    support = conversation.model.template.thinking
    if config.mode == "auto" and support is ThinkingSupport.SWITCHED:
        tell("the model thinks or not as it is used to, and as /think or /no_think in a message says")
    elif support is ThinkingSupport.NEVER or config.mode == "off":
        tell("the model answers at once from now on")
    elif config.budget is None:  # also of a model that always does
        tell("the model thinks before each answer from now on")
    else:
        tell(f"the model thinks before each answer from now on, for at most {config.budget} tokens")


def _no_think(conversation: Conversation, argument: str) -> None:
    _think(conversation, "off")


def _tools(conversation: Conversation, argument: str) -> None:
    if argument == "off":
        conversation.set_tools(None)
        tell("no tools from now on")
        return
    if argument:
        conversation.set_tools(Path(argument).expanduser())
    session = conversation.session
    if not session.tools:
        tell("no tools. /tools FILE.py offers the functions of a Python file to the model.")
        return
    origin = f" from {conversation.tools_file}" if conversation.tools_file else ""
    tell(f"tools{origin}, which run in this process when the model calls them:" if session.functions
         else "tools of the saved session; there are no functions to run for them here. /tools FILE.py brings them.")  # fmt: skip
    for tool in session.tools:
        function = tool["function"]
        parameters = ", ".join(function.get("parameters", {}).get("properties", {}))
        tell(f"  {function['name']}({parameters})  {shortened(function.get('description', ''), 80)}".rstrip())


def _stats(conversation: Conversation, argument: str) -> None:
    tell(stats_text(conversation))


def _undo(conversation: Conversation, argument: str) -> None:
    removed = conversation.undo()
    left = turns_text(conversation.session.messages)
    tell(f"taken back: {shortened(removed[0].content, _SHOWN_CHARACTERS)!r} and what followed; {left} left")


def _retry(conversation: Conversation, argument: str) -> None:
    conversation.retry()


def _history(conversation: Conversation, argument: str) -> None:
    tell(transcript(conversation.session.messages) or "nothing was said yet")


def _exit(conversation: Conversation, argument: str) -> None:
    conversation.is_over = True


COMMANDS = (
    SlashCommand(name="help", run=_help, summary="Show this list.", aliases=("",)),
    SlashCommand(name="new", run=_new, summary="Begin a new conversation; system message and tools stay.",
                 aliases=("clear",)),
    SlashCommand(name="system", run=_system, argument="[TEXT|off]", summary="Show or set the system message."),
    SlashCommand(name="think", run=_think, argument="[N|off|auto]",
                 summary="Think before each answer, for at most N tokens."),
    SlashCommand(name="no_think", run=_no_think, summary="Answer at once.", aliases=("nothink",)),
    SlashCommand(name="tools", run=_tools, argument="[FILE.py|off]", takes_path=True,
                 summary="Show the tools, or let the model call the functions of a Python file."),
    SlashCommand(name="stats", run=_stats, summary="Show tokens, speed, context and memory."),
    SlashCommand(name="history", run=_history, summary="Show the conversation so far.", aliases=("show",)),
    SlashCommand(name="undo", run=_undo, summary="Take the last turn back."),
    SlashCommand(name="retry", run=_retry, summary="Have the last turn answered again."),
    SlashCommand(name="save", run=saved.save, argument="FILE", is_required=True, takes_path=True,
                 summary="Save the conversation, its KV cache included."),
    SlashCommand(name="load", run=saved.load, argument="FILE", is_required=True, takes_path=True,
                 summary="Go on with a saved conversation."),
    SlashCommand(name="exit", run=_exit, summary="Leave; so does Ctrl-D.", aliases=("quit", "bye")),
)  # fmt: skip
BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}
