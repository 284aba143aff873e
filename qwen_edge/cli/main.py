"""The command line: the table of verbs, and their options in common.

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
from qwen_edge.cli.endings import end_with

NAME = "qwen-edge"
# Set by the scripts of `qwen-edge completion`.
COMPLETE_VARIABLE = "_QWEN_EDGE_COMPLETE"

# verb -> what it does; the code is `command` in qwen_edge/cli/<verb>.py, with "_" for "-"
VERBS: dict[str, str] = {
    "setup": "Build llama.cpp for this CPU, once.",
    "list": "Show the models that have a name, which fit, and what is here.",
    "plan": "Tell the memory that a model will need, and whether it is free.",
    "pull": "Fetch a model and check it.",
    "rm": "Remove models, downloads and caches.",
    "du": "Show what is kept on the disk.",
    "convert": "Turn a checkpoint into a GGUF file or an ONNX folder.",
    "verify": "Compare a GGUF file with the checkpoint it was made from.",
    "quantize": "Make a GGUF file or an ONNX folder smaller.",
    "run": "Answer one prompt.",
    "chat": "Talk to a model in the terminal.",
    "tune": "Find the fastest settings for a model on this machine.",
    "recommend": "Tell which quantization of a model suits this machine.",
    "bundle": "Gather a model with all that a device needs, in one folder.",
    "verify-bundle": "Tell what of a bundle has drifted on this device.",
    "bench": "Measure speed and memory of model files.",
    "device": "Show what this machine is, and how fast it reads memory.",
    "doctor": "Look at what is wrong here, and mend it.",
    "demo": "Convert, quantize, chat and measure, end to end.",
    "completion": "Print the script that completes names in your shell.",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = cmd_name.replace("-", "_")
        command = importlib.import_module(f"qwen_edge.cli.{module}").command
        assert isinstance(command, click.Command), f"Bug: cli.{module}.command is no click command"
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


# color: click takes no escape codes out of what is printed; output.styled() puts none in where none are wanted.
@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "color": True})
@click.version_option(__version__, prog_name=NAME)
@click.option(
    "-v", "--verbose", is_flag=True, help="Tell each step with its time, and the native library's log."
)
def cli(verbose: bool) -> None:
    """Small Qwen models on the machine in front of you: convert, quantize, run, measure."""
    if verbose:
        from qwen_edge.cli.verbose import tell_steps

        tell_steps()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; qwen_edge/cli/endings.py has the table of them."""
    warnings.showwarning = _show_warning
    try:
        arguments = list(sys.argv[1:] if argv is None else argv)
        if instruction := os.environ.get(COMPLETE_VARIABLE):
            from qwen_edge.cli.completion import answer

            return answer(instruction)
        with cli.make_context(NAME, arguments) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return end_with(error)
    return 0


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Print a warning as a line for the person at the terminal; other people's deprecations are dropped."""
    if not issubclass(category, DeprecationWarning):
        click.echo(f"warning: {message}", err=True)
