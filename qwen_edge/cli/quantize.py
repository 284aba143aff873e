"""`qwen-edge quantize`: a GGUF file, or an ONNX folder, becomes a smaller one."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.onnx_options import OnnxOptions, export, onnx_options, refuse
from qwen_edge.cli.output import format_bytes, format_option, note, print_json
from qwen_edge.cli.progress import byte_progress
from qwen_edge.quant_types import FILE_TYPE_ALIASES, FILE_TYPES, TENSOR_TYPES, file_type

if TYPE_CHECKING:
    from qwen_edge.quantize import QuantizationPlan, QuantizationReport

_FAMILIES = {
    "float": "unquantized",
    "legacy": "blocks of 32 weights with one scale",
    "k": "super-blocks of 256 weights, mixed by how much a matrix matters",
    "iq": "values from codebooks; the smallest",
    "trained": "for models trained to hold two to four values a weight",
}


def _types_help() -> str:
    lines = [
        "\b",
        "Types, with the bits per weight of most matrices (* needs an importance matrix: not made yet):",
    ]
    for kind, what in _FAMILIES.items():
        lines.append(f"  {kind}: {what}")
        cells = [
            f"{row.name} {TENSOR_TYPES[row.base].bits_per_weight:.4g}{'*' if row.needs_imatrix else ''}"
            for row in FILE_TYPES.values()
            if row.kind == kind
        ]
        lines += ["    " + "  ".join(cells[start : start + 5]) for start in range(0, len(cells), 5)]
    return "\n".join(lines)


@click.command("quantize", epilog=_types_help())
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-t",
    "--type",
    "type_name",
    required=True,
    metavar="TYPE",
    help="Type to make, such as Q4_K_M; of an ONNX folder int8 or int4.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The new file or folder. [default: FILE with the type in its name replaced]",
)
@click.option(
    "--allow-requantize", is_flag=True, help="GGUF: accept a FILE that is quantized already; errors add up."
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="GGUF: CPU threads. [default: physical cores]"
)
@click.option(
    "--pure", is_flag=True, help="GGUF: one type for all matrices: smaller, and worse than the mixture."
)
@click.option("--force", is_flag=True, help="Replace an existing file or exported folder.")
@click.option("--dry-run", is_flag=True, help="GGUF: only tell the size, exactly.")
@onnx_options
@format_option
def command(
    file: Path,
    type_name: str,
    output: Path | None,
    allow_requantize: bool,
    threads: int | None,
    pure: bool,
    force: bool,
    dry_run: bool,
    onnx: OnnxOptions,
    output_format: str,
) -> None:
    """Make FILE smaller: a GGUF file, or an ONNX folder with F32 or F16 weights.

    In a GGUF file embedding, head and some matrices get more bits than the type's name says, as llama.cpp mixes them; --dry-run
    tells what comes out.
    """
    if file.is_dir():
        gguf_only = {"--allow-requantize": allow_requantize, "--threads": threads}
        refuse({**gguf_only, "--pure": pure, "--dry-run": dry_run}, "goes with a GGUF file.")
        _quantize_folder(file, output, type_name, onnx, force=force, output_format=output_format)
        return
    refuse(dict.fromkeys(onnx.given(), True), "goes with an ONNX folder.")
    from qwen_edge.quantize import plan_quantization, quantize_file

    target = output or default_target(file, file_type(type_name).name)
    if dry_run:
        plan = plan_quantization(file, type_name, allow_requantize=allow_requantize, pure=pure)
        if output_format == "json":
            print_json(plan.to_dict())
        else:
            click.echo(_prediction(plan))
        return
    with byte_progress(f"Writing {target.name}") as progress:
        report = quantize_file(
            file,
            target,
            type_name,
            allow_requantize=allow_requantize,
            n_threads=threads,
            pure=pure,
            overwrite=force,
            on_plan=lambda plan: note(_prediction(plan)),
            progress=progress,
        )
    if output_format == "json":
        print_json(report.to_dict())
    else:
        click.echo(_summary(report))
    note(f'Next: qwen-edge run {quote(str(target))} "Hello"')


def _quantize_folder(
    folder: Path, output: Path | None, type_name: str, onnx: OnnxOptions, *, force: bool, output_format: str
) -> None:
    from qwen_edge.errors import ConfigError

    kind = type_name.lower()
    if kind not in ("int8", "int4"):
        raise click.UsageError(
            f"--type {type_name}: {folder} is a folder, and an ONNX model is quantized to int8 or int4. "
            "GGUF types take a GGUF file: qwen-edge convert CHECKPOINT"
        )
    if not (folder / "model.onnx").is_file():
        raise ConfigError(
            f"{folder} is a folder without a model.onnx",
            hint=f"Of a checkpoint, make one: qwen-edge convert {quote(str(folder))} --to onnx --weights {kind}",
        )
    folder = folder if folder.name else folder.absolute()
    name = re.sub(r"[-._](f32|f16)$", "", folder.name, flags=re.IGNORECASE)
    export(
        folder,
        output or folder.with_name(f"{name}-{kind}"),
        kind,
        onnx,
        force=force,
        output_format=output_format,
    )


def default_target(source: Path, type_name: str) -> Path:
    """Return the source's path with the type at the end of its name replaced, or added where there is none."""
    names = "|".join(map(re.escape, [*FILE_TYPES, *FILE_TYPE_ALIASES]))
    base, separator = source.stem, "-"
    if found := re.search(rf"([-._])({names})$", base, re.IGNORECASE):
        base, separator = base[: found.start()], found[1]
    return source.with_name(f"{base}{separator}{type_name}.gguf")


def _prediction(plan: QuantizationPlan) -> str:
    lines = [
        f"{plan.source.name} ({plan.source_type}, {format_bytes(plan.source_size_bytes)}) as {plan.type}: "
        f"{format_bytes(plan.predicted_bytes)}, {plan.bits_per_weight:.2f} bits per weight"
    ]
    if plan.fallbacks:
        lines.append(_fallback_text(plan))
    if plan.requantized:
        lines.append(
            f"{len(plan.requantized)} tensors are quantized a second time: expect worse answers than from the "
            "checkpoint in one step"
        )
    return "\n".join(lines)


def _fallback_text(plan: QuantizationPlan) -> str:
    changes = sorted({f"{row.wanted} to {row.used}" for row in plan.fallbacks})
    return (
        f"{len(plan.fallbacks)} of {len(plan.tensor_types)} tensors have rows that do not divide into the blocks of "
        f"their type and get another one ({', '.join(changes)})"
    )


def _summary(report: QuantizationReport) -> str:
    types = ", ".join(f"{count} {name}" for name, count in report.type_counts.items())
    return (
        f"{report.path}  {format_bytes(report.size_bytes)}, {report.type}, {report.bits_per_weight:.2f} bits per weight, "
        f"{report.n_params / 1e6:,.1f} M weights in {sum(report.type_counts.values())} tensors ({types}), "
        f"{report.duration_s:.1f} s"
    )
