"""`qwen-edge convert`: a checkpoint, or an adapter, becomes a GGUF file; a checkpoint also an ONNX folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, cast

import click

from qwen_edge.cli.completing import complete_model
from qwen_edge.cli.onnx_options import OnnxOptions, export, onnx_options, refuse, verify_made
from qwen_edge.cli.options import merged_adapter_option
from qwen_edge.cli.output import format_bytes, format_option, note, print_json
from qwen_edge.cli.progress import byte_progress
from qwen_edge.quant_types import ONNX_WEIGHT_TYPES

if TYPE_CHECKING:
    from qwen_edge.config import AdapterConfig
    from qwen_edge.convert import ConversionReport
    from qwen_edge.convert.adapter_gguf import AdapterType
    from qwen_edge.convert.dtypes import OutputType


@click.command("convert")
@click.argument("checkpoint", type=click.Path(path_type=Path), shell_complete=complete_model)
@click.option(
    "--to",
    "file_format",
    type=click.Choice(["gguf", "onnx"]),
    default="gguf",
    show_default=True,
    help="What to make: a GGUF file for llama.cpp, or a folder for ONNX Runtime.",
)
@click.option(
    "--dtype",
    type=click.Choice(["f32", "f16", "bf16"]),
    help="GGUF: type of the matrices. bf16 keeps published Qwen weights bit for bit. [default: bf16; of an adapter f32]",
)
@click.option(
    "--weights",
    type=click.Choice(ONNX_WEIGHT_TYPES),
    help="ONNX: type of the layers' matrices, and of the rest where nothing else is asked for. [default: f32]",
)
@onnx_options
@merged_adapter_option("PEFT adapter to merge into CHECKPOINT, its folder; may be given again.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="GGUF: the checkpoint that the adapter CHECKPOINT was trained on.",
)
@click.option(
    "--reranker/--no-reranker",
    default=None,
    help="GGUF: make a reranker of it, or not. [default: what the checkpoint calls itself]",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Compare what was made with the checkpoint afterwards, see: qwen-edge verify",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The GGUF file or ONNX folder. [default: CHECKPOINT's name-DTYPE.gguf or -onnx-WEIGHTS, here]",
)
@click.option("--force", is_flag=True, help="Replace an existing file or exported folder.")
@format_option
def command(
    checkpoint: Path,
    file_format: str,
    dtype: str | None,
    weights: str | None,
    onnx: OnnxOptions,
    adapters: tuple[AdapterConfig, ...],
    base: Path | None,
    reranker: bool | None,
    verify: bool,
    output: Path | None,
    force: bool,
    output_format: str,
) -> None:
    """Turn CHECKPOINT into a GGUF file, or with --to onnx into a folder for ONNX Runtime.

    CHECKPOINT is a folder with config.json, tokenizer.json and *.safetensors (Qwen3, Qwen2 or Qwen2.5), one
    .safetensors file with the others beside it, or the name of a model that `qwen-edge pull` has fetched.

    A PEFT adapter (LoRA) is merged with --adapter. Given as CHECKPOINT, with --base, it becomes a file of its own that
    acts beside the model.
    """
    from qwen_edge.convert.adapter import is_adapter_folder
    from qwen_edge.convert.checkpoint import checkpoint_name
    from qwen_edge.hub import locate_checkpoint

    checkpoint = locate_checkpoint(checkpoint)
    is_adapter = is_adapter_folder(checkpoint) and not (checkpoint / "config.json").exists()
    if file_format == "onnx":
        if is_adapter:
            raise click.UsageError(
                f"{checkpoint} is an adapter: merge it with: "
                f"qwen-edge convert CHECKPOINT --to onnx --adapter {quote(str(checkpoint))}"
            )
        gguf_only: dict[str, object] = {"--dtype": dtype, "--base": base}
        if onnx.opset_only:
            refuse({"--verify": verify}, "needs ONNX Runtime's own operators, without --opset-only.")
        gguf_only["--reranker/--no-reranker"] = None if reranker is None else True
        refuse(
            gguf_only,
            "goes with --to gguf; the types of an ONNX model are --weights, --head and --embedding.",
        )
        weights = weights or "f32"
        target = output or Path(f"{checkpoint_name(checkpoint)}-onnx-{weights}")
        export(
            checkpoint,
            target,
            weights,
            onnx,
            adapters=adapters,
            force=force,
            verify=verify,
            output_format=output_format,
        )
        return
    refuse(
        {"--weights": weights, **dict.fromkeys(onnx.given(), True)},
        "goes with --to onnx; the type of a GGUF file is --dtype.",
    )
    _check_usage(checkpoint, is_adapter, adapters, base)
    dtype = dtype or ("f32" if is_adapter else "bf16")
    target = output or Path(f"{checkpoint_name(checkpoint)}-{dtype}.gguf")
    _check_replaces(target, force)
    if is_adapter:
        assert base is not None, "Bug: checked above"
        _convert_adapter(
            checkpoint, locate_checkpoint(base), target, cast("AdapterType", dtype), output_format
        )
    else:
        settings = _Settings(cast("OutputType", dtype), adapters, reranker, verify)
        _convert_checkpoint(checkpoint, target, settings, output_format)


@dataclass(frozen=True)
class _Settings:
    """What was asked for besides source and target."""

    dtype: OutputType
    adapters: tuple[AdapterConfig, ...]
    reranker: bool | None
    verify: bool


def _check_usage(
    checkpoint: Path, is_adapter: bool, adapters: tuple[AdapterConfig, ...], base: Path | None
) -> None:
    if is_adapter and base is None:
        raise click.UsageError(
            f"{checkpoint} is an adapter: name its model with --base CHECKPOINT, or merge it with: "
            f"qwen-edge convert CHECKPOINT --adapter {quote(str(checkpoint))}"
        )
    if is_adapter and adapters:
        raise click.UsageError(f"--adapter merges into a checkpoint, and {checkpoint} is an adapter itself.")
    if base is not None and not is_adapter:
        raise click.UsageError(
            f"--base goes with an adapter folder, and {checkpoint} is none (it has no adapter_config.json)."
        )


def _check_replaces(target: Path, force: bool) -> None:
    from qwen_edge.errors import ConfigError
    from qwen_edge.files import writing

    with writing(target):
        is_there = target.is_file()
    if is_there and not force:
        raise ConfigError(
            f"{target} exists already", hint="Replace it with --force, or name another file with -o."
        )


def _convert_checkpoint(checkpoint: Path, target: Path, settings: _Settings, output_format: str) -> None:
    from qwen_edge.convert import convert_checkpoint

    with byte_progress(f"Writing {target.name}") as progress:
        report = convert_checkpoint(
            checkpoint,
            target,
            dtype=settings.dtype,
            adapters=settings.adapters,
            reranker=settings.reranker,
            progress=progress,
        )
    if output_format == "json":
        print_json(report.to_dict())
    else:
        click.echo(_summary(report))
    if settings.verify:
        verify_made(target, checkpoint, settings.adapters)
    smaller = target.with_name(f"{target.stem.removesuffix(f'-{settings.dtype}')}-Q4_K_M.gguf")
    note(f"Next: qwen-edge quantize {quote(str(target))} --type Q4_K_M -o {quote(str(smaller))}")


def _convert_adapter(adapter: Path, base: Path, target: Path, dtype: AdapterType, output_format: str) -> None:
    from qwen_edge.convert import convert_adapter

    report = convert_adapter(adapter, base, target, dtype=dtype)
    if output_format == "json":
        print_json(report.to_dict())
    else:
        click.echo(
            f"{report.path}  {format_bytes(report.size_bytes)}, adapter for {report.architecture}, {report.dtype}, "
            f"{report.parameter_count / 1e6:,.2f} M weights in {report.tensor_count} tensors"
        )
    note(f"Next: qwen-edge run MODEL PROMPT --adapter {quote(str(target))}")


def _summary(report: ConversionReport) -> str:
    lines = [
        f"{report.path}  {format_bytes(report.size_bytes)}, {report.architecture}, {report.dtype}, "
        f"{report.parameter_count / 1e6:,.1f} M weights in {report.tensor_count} tensors, {report.duration_s:.1f} s"
    ]
    lines += [f"merged: {path}" for path in report.adapters]
    lines += [f"left out: {tensor.name} ({tensor.reason})" for tensor in report.dropped]
    return "\n".join(lines)
