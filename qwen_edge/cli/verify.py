"""`qwen-edge verify`: does a file compute what its checkpoint does?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.completing import complete_model
from qwen_edge.cli.options import merged_adapter_option
from qwen_edge.cli.output import format_option, print_json

if TYPE_CHECKING:
    from qwen_edge.config import AdapterConfig
    from qwen_edge.convert import VerificationReport


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path), shell_complete=complete_model)
@click.option(
    "--against",
    "checkpoint",
    type=click.Path(path_type=Path),
    required=True,
    help="The checkpoint that FILE was made from: a folder, or the name of a pulled model.",
)
@merged_adapter_option("PEFT adapter that was merged into FILE, its folder; may be given again.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads. Default: the physical cores, on ARM without the little ones.",
)
@format_option
def command(
    file: Path,
    checkpoint: Path,
    adapters: tuple[AdapterConfig, ...],
    threads: int | None,
    output_format: str,
) -> None:
    """Run fixed prompts through FILE and through its checkpoint, and compare every logit.

    FILE is a GGUF file, a pulled one's name as in qwen3-0.6b@q8_0, or an ONNX folder. It runs in its engine as it
    does elsewhere; the checkpoint in a plain float32 computation that shares no code with it. Fails where FILE is further off than rounding to its type explains.
    """
    from qwen_edge.convert import verify_file
    from qwen_edge.hub import locate, locate_checkpoint

    file, checkpoint = locate(file), locate_checkpoint(checkpoint)
    report = verify_file(file, checkpoint, adapters=adapters, n_threads=threads)
    if output_format == "json":
        print_json(report.to_dict())
    else:
        click.echo(summary(report))
    report.require()


def summary(report: VerificationReport) -> str:
    """Return the report as lines for people."""
    from qwen_edge.convert.checkpoint import checkpoint_name

    limits = report.limits
    lines = [
        f"{report.path.name} against {checkpoint_name(report.checkpoint)}: {report.tokens} predictions on {report.prompts} prompts, "
        f"{report.duration_s:.1f} s",
        f"  logit error     max {report.max_logit_error:.3g}, mean {report.mean_logit_error:.3g}",
        f"  same top token  {report.top1_agreement:.2%}  (limit for {report.type or 'this type'}: "
        f"{limits.top1_agreement:.0%})",
        f"  KLD             mean {report.mean_kld:.3g} nat, max {report.max_kld:.3g}  (limit for the mean: "
        f"{limits.mean_kld:g})",
    ]
    if report.max_pooled_error is not None:
        lines.append(f"  pooled output   max error {report.max_pooled_error:.3g}")
    lines.append(
        "it computes what the checkpoint does" if report.is_within_limits else "beyond the limits of its type"
    )
    return "\n".join(lines)
