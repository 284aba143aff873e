"""`qwen-edge rm`: models, downloads and caches are removed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

import click

from qwen_edge.cli.completing import complete_stored
from qwen_edge.cli.output import format_bytes, format_option, note, print_json

if TYPE_CHECKING:
    from qwen_edge.stored import Kind, Stored


@click.command("rm")
@click.argument("names", nargs=-1, metavar="[NAME[@TYPE] | FILE]...", shell_complete=complete_stored)
@click.option(
    "--partial",
    "kinds",
    flag_value="partial",
    multiple=True,
    help="Downloads that were not ended, and what killed runs left.",
)
@click.option(
    "--prefix-cache",
    "kinds",
    flag_value="prefix-cache",
    multiple=True,
    help="Evaluated prompts; the next start reads them anew.",
)
@click.option(
    "--native",
    "kinds",
    flag_value="native",
    multiple=True,
    help="Builds of llama.cpp that this machine does not use, unfinished ones and logs.",
)
@click.option("--history", "kinds", flag_value="history", multiple=True, help="What was typed in chat.")
@click.option(
    "--records",
    "kinds",
    flag_value="records",
    multiple=True,
    help="Known digests, verdicts on the library, manifests.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@format_option
def command(
    names: tuple[str, ...], kinds: tuple[str, ...], yes: bool, dry_run: bool, output_format: str
) -> None:
    """Remove what qwen-edge keeps, after showing it and asking.

    NAME is a model as `qwen-edge du` shows it; without @TYPE all of it goes, its checkpoint too. FILE is one in the
    folders of qwen-edge: other files are left alone.
    """  # fmt: skip
    from qwen_edge.cli.du import as_json
    from qwen_edge.errors import ConfigError
    from qwen_edge.removal import remove, things_named, things_of_kind
    from qwen_edge.stored import stored_files

    if not names and not kinds:
        raise click.UsageError(
            "Name what is to go: a model, a file, or an option as --partial. qwen-edge du shows what is kept."
        )
    stored = stored_files()
    found = [item for name in names for item in things_named(name, stored)]
    found += [item for kind in dict.fromkeys(kinds) for item in things_of_kind(cast("Kind", kind), stored)]
    chosen = list({item.path: item for item in found}.values())
    for item in chosen:
        note(f"{format_bytes(item.size_bytes):>10}  {item.name}  {item.path}")
    size_bytes = sum(item.size_bytes for item in chosen)
    removed: list[Stored] = []
    kept: list[ConfigError] = []
    if not chosen:
        note("There is nothing of that.")
    elif dry_run:
        note(f"{format_bytes(size_bytes)} would be freed; nothing was removed.")
    else:
        _require_consent(chosen, size_bytes, yes)
        for item in chosen:
            try:
                remove(item)
                removed.append(item)
            except ConfigError as error:
                kept.append(error)
        note(f"{format_bytes(sum(item.size_bytes for item in removed))} freed.")
    if output_format == "json":
        print_json(
            {
                "would_go" if dry_run else "removed": [
                    as_json(item) for item in (chosen if dry_run else removed)
                ]
            }
        )
    for refusal in kept[1:]:
        note(f"kept: {refusal.message}")
    if kept:
        raise kept[0]


def _require_consent(chosen: list[Stored], size_bytes: int, yes: bool) -> None:
    """Ask whether to go on.

    Raises:
        ConfigError: There is nobody to ask.
        Exit: The answer is no.
    """
    from qwen_edge.errors import ConfigError

    if yes:
        return
    for item in chosen:
        if item.is_needed:
            note(f"{item.name} is in use: without it qwen-edge setup has to build it again.")
    if not sys.stdin.isatty():
        raise ConfigError("nothing was removed: there is no terminal to ask at", hint="Say it with --yes.")
    things = f"{len(chosen)} things" if len(chosen) > 1 else "it"
    if not click.confirm(f"Remove {things}, {format_bytes(size_bytes)}?", err=True):
        raise click.exceptions.Exit(1)
