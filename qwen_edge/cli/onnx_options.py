"""The options of an ONNX export, which `convert` and `quantize` share, and the export itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from qwen_edge.cli.output import format_bytes, note, print_json
from qwen_edge.cli.progress import byte_progress
from qwen_edge.quant_types import ONNX_WEIGHT_TYPES

if TYPE_CHECKING:
    from qwen_edge.config import AdapterConfig
    from qwen_edge.convert import GraphForm, OnnxPrecision, OnnxReport

# Characters of a calibration text that one sequence is made of when levels are chosen.
_TEXT_LENGTH = 1200
_STATIC_SIZES = ("batch", "tokens", "past")
_ABOUT_BLOCKS = ("--block-size", "--symmetric", "--asymmetric", "--rounding", "--calibrate")


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxOptions:
    """What was asked for; None and False where nothing was."""

    head: str | None = None
    embedding: str | None = None
    block_size: str | None = None
    symmetric: bool | None = None
    rounding: str | None = None
    calibrate: Path | None = None
    accuracy: str | None = None
    opset_only: bool = False
    static: dict[str, int] | None = None

    def given(self) -> list[str]:
        """Return the options that were asked for, as they are typed."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if values["symmetric"] is False:
            values["asymmetric"] = True
        return [flag_of(name) for name, value in values.items() if value not in (None, False)]

    def precision(self, weights: str) -> OnnxPrecision:
        """Return the types, with that of the layers' matrices.

        Raises:
            UsageError: Two options contradict each other, or one has nothing to act on.
        """
        from qwen_edge.convert import OnnxPrecision

        about_blocks = {*_ABOUT_BLOCKS} & set(self.given())
        if about_blocks and not {"int8", "int4"} & {weights, self.head, self.embedding}:
            raise click.UsageError(
                f"{' and '.join(sorted(about_blocks))} only matters for int8 and int4 weights; these are {weights}."
            )
        if self.calibrate is not None and self.rounding == "nearest":
            raise click.UsageError(
                "--calibrate weighs what --rounding search minimises; nearest looks at nothing."
            )
        asked: dict[str, Any] = {"weights": weights, "head": self.head, "embedding": self.embedding}
        asked["rounding"] = self.rounding or ("search" if self.calibrate is not None else "nearest")
        asked["block_size"] = int(self.block_size or 32)
        if self.accuracy is not None and (weights != "int4" or self.opset_only):
            raise click.UsageError("--accuracy is of int4 weights in ONNX Runtime's own operators.")
        asked["accuracy_level"] = 0 if self.accuracy == "exact" else 4
        return OnnxPrecision(symmetric=self.symmetric, **asked)

    def form(self) -> GraphForm:
        """Return the operators of the graph.

        Raises:
            UsageError: Fixed sizes are asked for of ONNX Runtime's operators.
        """
        from qwen_edge.convert import GraphForm

        if self.static is not None and not self.opset_only:
            raise click.UsageError(
                "--static goes with --opset-only: ONNX Runtime's own operators take any size."
            )
        return GraphForm(plain=self.opset_only, fixed=self.static)


def _parse_static(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> dict[str, int] | None:
    if value is None:
        return None
    numbers = [part.strip() for part in value.split(",")]
    if len(numbers) != len(_STATIC_SIZES) or not all(
        part.isascii() and part.isdecimal() and int(part) for part in numbers
    ):
        raise click.BadParameter(f"{value!r} is not BATCH,TOKENS,PAST, as in 1,64,1024.", context, parameter)
    return dict(zip(_STATIC_SIZES, map(int, numbers), strict=True))


_OPTIONS = (
    click.option("--head", type=click.Choice(ONNX_WEIGHT_TYPES), help="ONNX: type of the head. [default: the weights']"),
    click.option("--embedding", type=click.Choice(ONNX_WEIGHT_TYPES),
                 help="ONNX: type of the embedding; a tied one is the head, stored once, unless this differs. [default: the head's]"),
    click.option("--block-size", type=click.Choice(["32", "64", "128"]),
                 help="ONNX: int8 and int4 weights that share a scale. [default: 32]"),
    click.option("--symmetric/--asymmetric", default=None,
                 help="ONNX: blocks without or with zero points, which are a little larger and closer. [default: with, in int4]"),
    click.option("--rounding", type=click.Choice(["nearest", "search"]),
                 help="ONNX: how scales are chosen; search tries several, slower and closer. [default: nearest]"),
    click.option("--calibrate", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="TEXTFILE",
                 help="ONNX: search scales for what the model's inputs are on this text."),
    click.option("--accuracy", type=click.Choice(["fast", "exact", "auto"]),
                 help="ONNX: int4 matrices that round their inputs to 8 bits: all, none, or as many as leave 99% of the most "
                 "likely tokens alone, measured. [default: fast]"),
    click.option("--opset-only", is_flag=True,
                 help="ONNX: operators of the standard only, for other runtimes; slower in ONNX Runtime."),
    click.option("--static", callback=_parse_static, metavar="BATCH,TOKENS,PAST",
                 help="ONNX, with --opset-only: inputs of fixed sizes, as NPU compilers want."),
)  # fmt: skip


def onnx_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options above; the command gets them as one parameter, `onnx`."""

    @functools.wraps(function)
    def with_options(*args: Any, **kwargs: Any) -> Any:
        asked = {field.name: kwargs.pop(field.name) for field in fields(OnnxOptions)}
        return function(*args, onnx=OnnxOptions(**asked), **kwargs)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options


def flag_of(name: str) -> str:
    """Return a parameter's name as it is typed."""
    return "--" + name.replace("_", "-")


def refuse(options: Mapping[str, object], reason: str) -> None:
    """Refuse options that would do nothing.

    Args:
        options: Flag -> value, None or False where it was not given.
        reason: What they go with.

    Raises:
        UsageError: One was given.
    """
    given = [flag for flag, value in options.items() if value not in (None, False)]
    if given:
        raise click.UsageError(f"{' and '.join(given)}: {reason}")


def export(
    source: Path,
    target: Path,
    weights: str,
    options: OnnxOptions,
    *,
    adapters: tuple[AdapterConfig, ...] = (),
    force: bool,
    verify: bool = False,
    output_format: str,
) -> None:
    """Export a checkpoint, or an exported folder, and tell what came out."""
    from qwen_edge.convert import export_onnx

    precision, form = options.precision(weights), options.form()
    importance = None
    if options.calibrate is not None:
        importance = _importance(source, options.calibrate, adapters)
    with byte_progress(f"Writing {target.name}") as progress:
        report = export_onnx(
            source,
            target,
            precision=precision,
            form=form,
            adapters=adapters,
            importance=importance,
            replace=force,
            progress=progress,
        )
    if options.accuracy == "auto":
        _choose_levels(target, options.calibrate)
    if output_format == "json":
        print_json(report.to_dict())
    else:
        click.echo(_summary(report))
    types = {report.precision.type_of(role) for role in ("layers", "head", "embedding")}
    if "f16" in types:
        note(
            "F16 is a form of the file: CPUs compute it in float32, and it takes as much memory as F32 does there."
        )
    if report.precision != precision:
        note("The embedding is stored in 8 bits: no operator of the standard looks up rows of 4.")
    if verify:
        verify_made(target, source, adapters)
    if not form.plain:
        note(f'Next: qwen-edge run {quote(str(target))} "Hello"')


def _choose_levels(folder: Path, text: Path | None) -> None:
    from qwen_edge.convert.onnx_levels import choose_levels
    from qwen_edge.convert.verification import PROMPTS

    texts: tuple[str, ...] = PROMPTS
    if text is not None:
        content = text.read_text(encoding="utf-8")
        texts = tuple(
            content[start : start + _TEXT_LENGTH] for start in range(0, 8 * _TEXT_LENGTH, _TEXT_LENGTH)
        )
        texts = tuple(part for part in texts if part.strip()) or PROMPTS
    choice = choose_levels(folder, texts)
    fastest, chosen = choice.trials[0], choice.chosen
    note(
        f"With all matrices fast {fastest.flips} of {fastest.tokens} most likely tokens change (KLD {fastest.mean_kld:.2g})"
        + (
            f"; exact now: {', '.join(chosen.exact)}: {chosen.flips} change"
            if chosen.exact
            else ": they stay so"
        )
    )


def _importance(source: Path, text: Path, adapters: tuple[AdapterConfig, ...]) -> Any:
    from qwen_edge.convert.adapter_merge import apply_adapters
    from qwen_edge.convert.onnx_importance import MAX_TOKENS, measure_importance, tokenize
    from qwen_edge.convert.onnx_source import open_source
    from qwen_edge.errors import ConfigError

    checkpoint = open_source(source)
    checkpoint = apply_adapters(checkpoint, adapters) if adapters else checkpoint
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{text} is no UTF-8 text", hint="Calibration takes a plain text file.") from error
    tokens = tokenize(checkpoint, content)
    note(f"Calibrating on {min(len(tokens), MAX_TOKENS)} tokens of {text.name}, in float32")
    return measure_importance(checkpoint, tokens)


def verify_made(made: Path, checkpoint: Path, adapters: tuple[AdapterConfig, ...]) -> None:
    """Compare what was made with its checkpoint.

    Raises:
        VerificationError: It is beyond the limits of its type.
    """
    from qwen_edge.cli.verify import summary
    from qwen_edge.convert import verify_file

    report = verify_file(made, checkpoint, adapters=adapters)
    note(summary(report))
    report.require()


def _summary(report: OnnxReport) -> str:
    precision = report.precision
    kinds = [str(precision.weights)]
    for role, kind in (("head", precision.type_of("head")), ("embedding", precision.type_of("embedding"))):
        kinds += [f"{role} {kind}"] if kind != precision.weights else []
    lines = [
        f"{report.path}  {format_bytes(report.size_bytes)}, {report.architecture}, {', '.join(kinds)}, "
        f"{report.bits_per_weight:.2f} bits per weight, {report.parameter_count / 1e6:,.1f} M weights, "
        f"{report.duration_s:.1f} s"
    ]
    lines += [f"merged: {path}" for path in report.adapters]
    lines += [f"left out: {tensor.name} ({tensor.reason})" for tensor in report.dropped]
    return "\n".join(lines)
