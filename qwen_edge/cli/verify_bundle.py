"""`qwen-edge verify-bundle`: what of a bundle has drifted on this device."""

from __future__ import annotations

from pathlib import Path

import click

from qwen_edge.cli.output import format_option, note, print_json


@click.command("verify-bundle")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--no-speed", is_flag=True, help="Do not run the model.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    metavar="SHARE",
    help="How much slower it may be than where the bundle was made, on the same kind of machine.",
)
@click.option("--strict", is_flag=True, help="Count notes (another build, other package versions) as drift.")
@format_option
def command(folder: Path, no_speed: bool, tolerance: float, strict: bool, output_format: str) -> None:
    """Check the bundle in FOLDER: its files, and whether this machine runs it as the bundle says.

    Files are read whole; one that is changed is named, of the model the tensor too. The exit code is 1 where something
    has drifted. Nothing is fetched.
    """
    from qwen_edge.bundle.checking import check_bundle
    from qwen_edge.bundle.report import GROUPS

    report = check_bundle(
        folder, measures_speed=not no_speed, tolerance=tolerance, say=lambda name: note(f"checking {name}")
    )
    if output_format == "json":
        print_json(report.to_dict() | {"has_drifted": report.has_drifted(strict=strict)})
    else:
        for group in GROUPS:
            found = [finding for finding in report.findings if finding.group == group]
            for finding in found:
                title = group if finding is found[0] else ""
                click.echo(f"{title:9} {finding.status:6} {finding.text}")
            if not found:
                click.echo(f"{group:9} {'-':6} not checked: files of the bundle are not as they should be")
    if report.has_drifted(strict=strict):
        raise click.exceptions.Exit(1)
    note(f"All is well. Next: qwen-edge chat {folder}")
