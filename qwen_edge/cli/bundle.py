"""`qwen-edge bundle`: a folder with all that a device needs to run one model offline."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from qwen_edge.cli.completing import complete_model
from qwen_edge.cli.options import (
    flash_attention_for,
    flash_attention_option,
    kv_type_option,
    load_mode_option,
)
from qwen_edge.cli.output import format_bytes, format_option, note, print_json
from qwen_edge.cli.progress import byte_progress
from qwen_edge.config import DEFAULT_N_CTX, KVType, LoadConfig, LoadMode, Switch


@click.command("bundle")
@click.argument("name", shell_complete=complete_model)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option(
    "--n-ctx",
    type=click.IntRange(min=16),
    default=DEFAULT_N_CTX,
    show_default=True,
    help="Context that is recommended to the device, in tokens.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads on the device. Default: its own choice."
)
@kv_type_option
@flash_attention_option
@load_mode_option
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Folder or name of the checkpoint that has the tokenizer and the licence. Default: the one it was made from.",
)
@click.option(
    "--measure", is_flag=True, help="Measure how fast it is here, for comparing on the same machine later."
)
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@format_option
def command(
    name: str,
    output: Path,
    n_ctx: int,
    threads: int | None,
    kv_type: KVType,
    flash_attention: Switch | None,
    load_mode: LoadMode,
    checkpoint: Path | None,
    measure: bool,
    force: bool,
    output_format: str,
) -> None:
    """Gather NAME (a GGUF file, an ONNX folder, or a model's name) with all that a device needs in one folder.

    The model is a plain file that other programs open too; bundle.json has facts, settings and the memory plan,
    llama-rn.json the parameters for apps. What qwen-edge tune found here goes along. Copy the folder as it is.
    """
    from qwen_edge.bundle.writing import BundleRequest, make_bundle
    from qwen_edge.hub import locate, locate_checkpoint

    load = LoadConfig(
        n_ctx=n_ctx,
        n_threads=threads,
        kv_type=kv_type,
        flash_attention=flash_attention_for(kv_type, flash_attention),
        load_mode=load_mode,
    )
    request = BundleRequest(
        load=load,
        checkpoint=locate_checkpoint(checkpoint) if checkpoint is not None else None,
        measure=measure,
        replace=force,
    )
    with byte_progress(f"Writing {output.name}") as progress:
        bundle = make_bundle(locate(name), output, request, progress=progress, say=note)
    if output_format == "json":
        print_json(
            {"bundle": str(output), "model": bundle.model.file, "files": [each.name for each in bundle.files]}
        )
    else:
        size_bytes = sum(record.size_bytes for record in bundle.files)
        click.echo(
            f"{output}  {format_bytes(size_bytes)}, {len(bundle.files) + 2} files, model {bundle.model.file}"
        )
    if not bundle.model.licence:
        note("No licence is stated by the file or its publisher: LICENSE says so.")
    if bundle.speed is None:
        note("Its speed is not in it: add --measure, or run qwen-edge tune before.")
    note(f"On the device: qwen-edge verify-bundle {quote(output.name)}")
