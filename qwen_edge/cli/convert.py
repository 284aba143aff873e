"""`qwen-edge convert`: a checkpoint becomes a GGUF file."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.output import byte_progress, format_bytes, format_option, note, print_json

if TYPE_CHECKING:
    from qwen_edge.convert import ConversionReport


@click.command("convert")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "file_format",
    type=click.Choice(["gguf"]),
    default="gguf",
    show_default=True,
    help="The file to make.",
)
@click.option(
    "--dtype",
    type=click.Choice(["f32", "f16", "bf16"]),
    default="bf16",
    show_default=True,
    help="Type of the matrices. bf16 keeps published Qwen weights bit for bit.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The GGUF file. [default: CHECKPOINT's name-DTYPE.gguf, here]",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@format_option
def command(
    checkpoint: Path, file_format: str, dtype: str, output: Path | None, force: bool, output_format: str
) -> None:
    """Turn CHECKPOINT into a GGUF file.

    CHECKPOINT is a folder with config.json, tokenizer.json and *.safetensors (Qwen3, Qwen2 or Qwen2.5), one
    .safetensors file with the others beside it, or the name of a model that `qwen-edge pull` has fetched.
    """
    from qwen_edge.convert import convert_checkpoint
    from qwen_edge.convert.checkpoint import checkpoint_name
    from qwen_edge.errors import ConfigError
    from qwen_edge.hub import locate_checkpoint

    checkpoint = locate_checkpoint(checkpoint)
    assert file_format == "gguf", "Bug: the option knows one format"
    target = output or Path(f"{checkpoint_name(checkpoint)}-{dtype}.gguf")
    if target.is_file() and not force:
        raise ConfigError(
            f"{target} exists already", hint="Replace it with --force, or name another file with -o."
        )
    with byte_progress() as display:
        task = display.add_task(f"Writing {target.name}", total=None)
        report = convert_checkpoint(
            checkpoint,
            target,
            dtype=dtype,  # type: ignore[arg-type]  # click has checked it
            progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    if output_format == "json":
        print_json(report.to_dict())
    else:
        click.echo(_summary(report))
    smaller = target.with_name(f"{target.stem.removesuffix(f'-{dtype}')}-Q4_K_M.gguf")
    note(f"Next: qwen-edge quantize {quote(str(target))} --type Q4_K_M -o {quote(str(smaller))}")


def _summary(report: ConversionReport) -> str:
    lines = [
        f"{report.path}  {format_bytes(report.size_bytes)}, {report.architecture}, {report.dtype}, "
        f"{report.parameter_count / 1e6:,.1f} M weights in {report.tensor_count} tensors, {report.duration_s:.1f} s"
    ]
    lines += [f"left out: {tensor.name} ({tensor.reason})" for tensor in report.dropped]
    return "\n".join(lines)
