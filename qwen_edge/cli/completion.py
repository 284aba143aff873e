"""`qwen-edge completion`: the script that lets a shell complete, and the answers to its questions."""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    shell_complete,
    split_arg_string,
)

from qwen_edge.cli.main import COMPLETE_VARIABLE, NAME, cli
from qwen_edge.cli.output import note

# Where each shell looks, or what to add to which file.
_PLACES = {
    "bash": "qwen-edge completion bash > ~/.local/share/bash-completion/completions/qwen-edge",
    "zsh": "qwen-edge completion zsh > ~/.zfunc/_qwen-edge   with   fpath+=~/.zfunc; autoload -Uz compinit; compinit   in ~/.zshrc",
    "fish": "qwen-edge completion fish > ~/.config/fish/completions/qwen-edge.fish",
}


@click.command("completion")
@click.argument("shell", type=click.Choice(list(_PLACES)))
def command(shell: str) -> None:
    """Print the script that completes commands, options, models, types and files in SHELL."""
    found = get_completion_class(shell)
    assert found is not None, f"Bug: click knows no {shell}"
    click.echo(found(cli, {}, NAME, COMPLETE_VARIABLE).source())
    note(f"To keep it: {_PLACES[shell]}")


def answer(instruction: str) -> int:
    """Answer the question of a shell's script and return the exit code.

    Args:
        instruction: As click words it: "bash_complete".
    """
    add_completion_class(_Bash)
    return shell_complete(cli, {}, NAME, COMPLETE_VARIABLE, instruction)


class _Bash(BashComplete):
    """Bash takes "@" for a word of its own, and replaces it with what follows it."""

    _kept = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        words, position = split_arg_string(os.environ["COMP_WORDS"]), int(os.environ["COMP_CWORD"])
        joined: list[str] = []
        for word in [*words[:position], words[position] if position < len(words) else ""]:
            if joined and (word == "@" or joined[-1].endswith("@")):
                joined[-1] += word
            else:
                joined.append(word)
        incomplete = joined.pop()
        name, at, _ = incomplete.partition("@")
        self._kept = name if at and words[position] != incomplete else ""
        return joined[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value[len(self._kept) :]}"
