"""The command's options, and the loop over turns."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.completing import complete_model
from qwen_edge.cli.options import GenerationOptions, generation_options
from qwen_edge.cli.output import format_option
from qwen_edge.errors import ContextOverflowError, QwenEdgeError
from qwen_edge.paths import cache_root

if TYPE_CHECKING:
    from qwen_edge.cli.chat.conversation import Conversation
    from qwen_edge.cli.chat.reading import Reader


@click.command()
@click.argument("file", shell_complete=complete_model)
@click.option("--system", help="What the model is told before the first turn.")
@click.option("--tools", type=click.Path(path_type=Path), metavar="FILE.py",
              help="Let the model call the functions of a Python file, which is run.")  # fmt: skip
@click.option("--load", "saved", type=click.Path(path_type=Path), metavar="FILE",
              help="Go on with a conversation that /save wrote.")  # fmt: skip
@click.option("--no-history", is_flag=True, help="Keep nothing that is typed for the next time.")
@generation_options
@format_option
def command(
    file: str,
    system: str | None,
    tools: Path | None,
    saved: Path | None,
    no_history: bool,
    options: GenerationOptions,
    output_format: str,
) -> None:
    """Talk to the model in FILE (a GGUF file, an ONNX folder, a bundle, or a model's name).

    In a terminal: /help lists what can be done besides talking. With a pipe on stdin each line is a turn, commands
    included, and it ends with the input. With --format json each answer is one line of JSON.
    """
    from qwen_edge.cli.chat import saved as saved_conversations
    from qwen_edge.cli.chat.commands import Typed, run_command
    from qwen_edge.cli.chat.conversation import Conversation
    from qwen_edge.cli.chat.screen import JsonScreen, TextScreen
    from qwen_edge.cli.stream import tell
    from qwen_edge.model import load

    with load(file, options.load, **options.asked) as model:
        screen = JsonScreen() if output_format == "json" else TextScreen()
        conversation = Conversation(model, model.session(system=system), screen, options)
        if saved is not None:
            saved_conversations.load(conversation, str(saved))
            if system is not None:
                conversation.session.system = system
        if tools is not None:
            run_command(conversation, Typed("tools", str(tools)))
        is_interactive = sys.stdin.isatty()
        if is_interactive:
            tell(f"{model.info.name or file} is ready. /help lists the commands, Ctrl-D leaves.")
        talk(conversation, open_reader(keeps_history=not no_history), is_interactive=is_interactive)


def open_reader(*, keeps_history: bool) -> Reader:
    """Return where turns come from: an editor in a terminal that can move its cursor, else lines of stdin."""
    from qwen_edge.cli.chat.reading import LineReader

    is_terminal = sys.stdin.isatty()
    is_shown = sys.stdout.isatty() or sys.stderr.isatty()
    if not is_terminal or not is_shown or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return LineReader(sys.stdin.buffer, is_terminal=is_terminal)
    from qwen_edge.cli.chat.prompt import PromptReader

    return PromptReader(cache_root() / "history" / "chat" if keeps_history else None)


def talk(conversation: Conversation, reader: Reader, *, is_interactive: bool) -> None:
    """Answer turn after turn, to the end of them.

    Args:
        conversation: What they are said in.
        reader: Where they come from.
        is_interactive: A person is there, who reads what went wrong and goes on; otherwise what no command is to blame
            for ends the program.

    Raises:
        QwenEdgeError, OSError: Without a person, when an answer fails for another reason than its length.
        KeyboardInterrupt: Without a person, Ctrl-C.
    """
    from qwen_edge.cli.chat.commands import Typed, parse, run_command
    from qwen_edge.cli.stream import tell

    draft = ""
    while not conversation.is_over and (text := reader.read(draft)) is not None:
        draft = ""
        if not text.strip():
            continue
        turn = parse(text)
        try:
            if isinstance(turn, Typed):
                run_command(conversation, turn)
            else:
                conversation.say(turn)
        except ContextOverflowError as error:
            draft = text
            tell(
                f"error: {error.message}\n  /new begins a new conversation, /undo takes the last turn out, --n-ctx gives more room."
            )
        except BrokenPipeError:  # nobody reads the answers any more
            raise
        except (QwenEdgeError, OSError) as error:
            if not is_interactive and not isinstance(turn, Typed):
                raise
            tell(f"error: {error}")
        except KeyboardInterrupt:
            if not is_interactive:
                raise
            tell("(stopped)")
        if is_interactive and not conversation.is_over:
            tell("")
