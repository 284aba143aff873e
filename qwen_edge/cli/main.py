"""Entry point of `qwen-edge`: the table of verbs and what happens to an error.

A verb's module is imported when the verb is called, so that `qwen-edge --help` costs click and nothing else.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

import click

from qwen_edge import __version__

# verb -> what it does; the code is `command` in qwen_edge/cli/<verb>.py
VERBS: dict[str, str] = {
    "setup": "Build llama.cpp for this CPU, once.",
    "list": "Show the models that have a name, and which fit here.",
    "pull": "Fetch a model and check it.",
    "convert": "Turn a checkpoint into a GGUF file or an ONNX folder.",
    "verify": "Compare a GGUF file with the checkpoint it was made from.",
    "quantize": "Make a GGUF file or an ONNX folder smaller.",
    "run": "Answer one prompt.",
    "chat": "Talk to a model in the terminal.",
    "bench": "Measure speed and memory of model files.",
    "doctor": "Look at what is wrong here, and mend it.",
    "demo": "Convert, quantize, chat and measure, end to end.",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"qwen_edge.cli.{cmd_name}").command
        assert isinstance(command, click.Command), f"Bug: cli.{cmd_name}.command is no click command"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{meant} Commands: {', '.join(VERBS)}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qwen-edge")
def cli() -> None:
    """Small Qwen models on the machine in front of you: convert, quantize, run, measure."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    from qwen_edge.errors import QwenEdgeError

    warnings.showwarning = _show_warning
    try:
        cli.main(args=list(argv) if argv is not None else None, prog_name="qwen-edge", standalone_mode=False)
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("interrupted", err=True)
        return 130
    except (QwenEdgeError, OSError) as error:
        if os.environ.get("QWEN_EDGE_DEBUG") == "1":
            raise
        click.echo(f"error: {error}", err=True)
        return 1
    return 0


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Print a warning as a line for the person at the terminal; other people's deprecations are dropped."""
    if not issubclass(category, DeprecationWarning):
        click.echo(f"warning: {message}", err=True)


def run() -> None:
    """Console-script entry."""
    sys.exit(main())
