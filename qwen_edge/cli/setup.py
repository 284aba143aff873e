"""`qwen-edge setup`: llama.cpp is built for this CPU, into the user's cache."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from qwen_edge.cli.output import format_bytes, format_option, note, print_json

if TYPE_CHECKING:
    from qwen_edge.native.build_plan import BuildPlan
    from qwen_edge.native.builds import Build


@click.command("setup")
@click.option("--print-plan", is_flag=True, help="Show what would be built and with which flags, and stop.")
@click.option("--force", is_flag=True, help="Build it from the start, although it is there.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Files to compile at once. Default: one a core, as far as memory allows.",
)
@click.option(
    "--for",
    "architecture",
    type=click.Choice(["aarch64"]),
    help="Make a wheel for other machines instead: any 64-bit ARM processor with Linux.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --for: folder of the wheel.",
)
@click.option(
    "--wheel",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Build nothing: take the library from a wheel that --for made.",
)
@format_option
def command(
    print_plan: bool,
    force: bool,
    jobs: int | None,
    architecture: str | None,
    output: Path | None,
    wheel: Path | None,
    output_format: str,
) -> None:
    """Build llama.cpp for this CPU and compiler, once.

    It goes into the cache of qwen-edge, where every environment finds it; nothing is installed. Run again, it says
    that it is there; after an interruption it goes on where it stopped. CXX, CMAKE_ARGS, CFLAGS, CXXFLAGS and LDFLAGS
    are honoured. QWEN_EDGE_KERNELS=0 builds llama.cpp without qwen-edge's own kernels for decode.

    For a board or phone without a compiler: `qwen-edge setup --for aarch64 -o DIR` compiles on another machine, with
    kernels for each level of ARM processors, and `qwen-edge setup --wheel FILE` takes them on the device.
    """
    from qwen_edge.native import build

    if (architecture is None) != (output is None):
        raise click.UsageError(
            "--for and --output (-o) go together: what to build for, and where the wheel goes."
        )
    if wheel is not None:
        if architecture or force or print_plan:
            raise click.UsageError("--wheel builds nothing; leave --for, --force and --print-plan out.")
        _install(wheel, output_format)
        return
    if architecture is not None:
        from qwen_edge.native import portable

        plan = portable.plan_portable(os.environ)
    else:
        plan = build.plan_here()
    if print_plan:
        facts = _describe(plan, jobs)
        if output_format == "json":
            print_json(facts)
        else:
            _print_plan(facts)
        return
    note(f"llama-cpp-python {plan.version} for {plan.cpu.name} ({plan.cpu.architecture})")
    note(f"  compiler: {plan.compiler.banner}")
    for reason in plan.reasons:
        note(f"  {reason}")
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        if output is not None:
            _print_wheel(portable.build_wheel(plan, output, force=force, jobs=jobs, say=note), output_format)
            return
        made = build.ensure_build(plan, force=force, jobs=jobs, say=note)
    except KeyboardInterrupt:
        note("what is compiled is kept: qwen-edge setup goes on from there")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if output_format == "json":
        print_json(_build_facts(made))
    else:
        click.echo(f"ready: {made.package.parent}")
    _note_what_is_next(made)


def _print_wheel(wheel: Path, output_format: str) -> None:
    if output_format == "json":
        print_json({"wheel": str(wheel), "size_bytes": wheel.stat().st_size})
    else:
        click.echo(str(wheel))
    note(f"next: copy it to the device, and there: qwen-edge setup --wheel {wheel.name}")


def _install(wheel: Path, output_format: str) -> None:
    from qwen_edge.native.portable import install_wheel

    made = install_wheel(wheel, say=note)
    if output_format == "json":
        print_json(_build_facts(made))
    else:
        click.echo(f"ready: {made.package.parent}")
    _note_what_is_next(made)


def _on_sigterm(_signal: int, _frame: object) -> NoReturn:
    # An exception, so that the compilers are ended.
    raise SystemExit(143)


def _note_what_is_next(made: Build) -> None:
    from qwen_edge.native.builds import chosen_build

    used = chosen_build()
    if used is not None and used.library != made.library:
        note(f"warning: {used.library} is used instead of it ({used.origin})")
    note("next: qwen-edge doctor checks it; qwen-edge list names models; qwen-edge chat qwen3-0.6b")


def _build_facts(made: Build) -> dict[str, Any]:
    return {**asdict(made), "package": str(made.package), "library": str(made.library)}


def _describe(plan: BuildPlan, jobs: int | None) -> dict[str, Any]:
    """Return a plan with what the cache has of it and what the build needs, JSON-ready."""
    from qwen_edge.native import build, build_needs
    from qwen_edge.native.builds import builds_folder, is_whole

    entry, work = builds_folder() / plan.key, build.work_folder(plan)
    n_jobs = jobs or build.jobs_from(os.environ)
    return {
        **plan.build_facts(),
        "compiler_command": plan.compiler.command,
        "reasons": list(plan.reasons),
        "jobs": n_jobs,
        "entry": str(entry),
        "is_built": is_whole(entry),
        "interrupted": str(work) if build.is_resumable(work) else None,
        "needed_disk_bytes": build_needs.NEEDED_DISK_BYTES,
        "free_disk_bytes": build_needs.free_disk_bytes(entry),
        "expected_minutes": build_needs.expected_minutes(n_jobs),
    }


def _print_plan(facts: dict[str, Any]) -> None:
    click.echo(f"llama-cpp-python {facts['version']} for {facts['cpu']}, {facts['target']}")
    click.echo(f"  compiler: {facts['compiler']}")
    for reason in facts["reasons"]:
        click.echo(f"  {reason}")
    if facts["is_built"]:
        click.echo(f"  built: {facts['entry']}")
        return
    click.echo(
        f"  takes about {facts['expected_minutes']} min with {facts['jobs']} jobs, more on a small board; needs "
        f"{format_bytes(facts['needed_disk_bytes'])} of disk, {format_bytes(facts['free_disk_bytes'])} are free"
    )
    if facts["interrupted"]:
        click.echo(f"  goes on with: {facts['interrupted']}")
    click.echo(f"  into: {facts['entry']}")
