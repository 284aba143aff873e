"""`qwen-edge chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import json
import sys

import click

from qwen_edge.cli.options import GenerationOptions, generation_options
from qwen_edge.cli.output import format_option, note
from qwen_edge.cli.stream import ctrl_c_cancels, show_stats, show_stream
from qwen_edge.errors import ContextOverflowError
from qwen_edge.session import Session
from qwen_edge.types import Reply

_HELP = "/new begins again, /stats shows what the last answer cost, /exit or Ctrl-D leaves. Ctrl-C stops an answer."


@click.command()
@click.argument("file")
@click.option("--system", help="What the model is told before the first turn.")
@generation_options
@format_option
def command(file: str, system: str | None, options: GenerationOptions, output_format: str) -> None:
    """Talk to the model in FILE (a GGUF file, an ONNX folder, or a model's name).

    Reads one turn a line; with a pipe on stdin it answers each line and ends. With --format json each answer
    is one line of JSON.
    """
    from qwen_edge.model import load

    interactive = sys.stdin.isatty()
    with load(file, options.load) as model:
        if interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  line editing and history for input()
            note(f"{model.info.name or file} is ready. {_HELP}")
        session = model.session(system=system)
        last: Reply | None = None
        while (line := _read_line(interactive)) is not None:
            match line.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    break
                case "/help":
                    note(_HELP)
                case "/new":
                    session.close()
                    session, last = model.session(system=system), None
                    note("a new conversation")
                case "/stats":
                    if last is not None:
                        show_stats(last)
                case text if text.startswith("/") and " " not in text and text not in ("/think", "/no_think"):
                    note(f"no command {text}. {_HELP}")
                case text:
                    last = _answer(session, text, options, output_format)


def _read_line(interactive: bool) -> str | None:
    """Return the next turn, or None at the end; Ctrl-C at the prompt discards the line."""
    if not interactive:
        return sys.stdin.readline() or None
    while True:
        try:
            # input() writes its prompt to stdout; on a terminal that is where it belongs.
            return input("> ")
        except EOFError:
            click.echo(err=True)
            return None
        except KeyboardInterrupt:
            note("\n(Ctrl-D or /exit leaves)")


def _answer(session: Session, text: str, options: GenerationOptions, output_format: str) -> Reply | None:
    """Give one answer; Ctrl-C ends it and the conversation goes on."""
    sampling = options.sampling(session.recommended_sampling(options.thinking, text))
    stream = session.stream(text, thinking=options.thinking, max_tokens=options.max_tokens, sampling=sampling)
    try:
        with ctrl_c_cancels(session):
            if output_format == "json":
                click.echo(json.dumps(stream.finish().to_dict(), ensure_ascii=False))
            else:
                show_stream(stream)
    except KeyboardInterrupt:
        stream.close()
        note("\n(stopped)")
        return None
    except ContextOverflowError as error:
        note(f"error: {error}\n  /new begins a new conversation.")
        return None
    return stream.reply
