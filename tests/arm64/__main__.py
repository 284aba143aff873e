"""qwen-edge on ARM, without an ARM machine: tests and a smoke test in an emulated Debian for arm64.

    python -m tests.arm64 --wheel FILE [--levels cortex-a53,max] [--tests all|chosen|none] [--out DIR]

The first run makes the Debian and fetches packages for it: some minutes, and 1 GB in the cache of qwen-edge. Runs as
root, for mounts and namespaces, and leaves none of these. Inside there is no network. Levels run beside each other, one a
core. Writes DIR/report.md and
DIR/report.json; exit code 1 when something failed on any level. Emulation shows what is right, not what is fast.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from filelock import FileLock

from qwen_edge.paths import cache_root
from tests.arm64 import root
from tests.arm64.guest import Guest
from tests.arm64.levels import LEVELS, Level, choose_levels
from tests.arm64.report import table, write_report
from tests.arm64.results import LevelResult, read_junit, read_smoke

REPOSITORY = Path(__file__).parents[2]

# What can depend on the processor: arithmetic in numpy, native code and what is known of the machine.
CHOSEN = (
    "tests/unit/convert",
    "tests/unit/native",
    "tests/unit/engines",
    "tests/unit/device",
    "tests/unit/doctor",
    "tests/unit/quantize",
    "tests/unit/tune",
    "tests/unit/test_memory.py",
    "tests/unit/test_trial_model.py",
    "tests/unit/test_session.py",
    "tests/unit/test_typed.py",
)
_PYTEST = ("python3", "-m", "pytest", "--dist", "worksteal", "-p", "no:cacheprovider", "-q", "--hypothesis-profile=emulated", "--junitxml=/out/tests.xml")  # fmt: skip
# Threads of numpy's that wait for each other take several times as long where cores are few and emulated.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
_SMOKE_LIMIT_S = 3600.0
_TESTS_LIMIT_S = 7200.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wheel", type=Path, required=True, help="the library for aarch64, from `make arm64`"
    )
    parser.add_argument(
        "--levels", default="", help=f"of {', '.join(level.name for level in LEVELS)}; all without it"
    )
    parser.add_argument(
        "--tests",
        choices=("auto", "all", "chosen", "none"),
        default="auto",
        help="fast tests to run: by default all on one level, on the others those that depend on a processor",
    )
    parser.add_argument("--folder", type=Path, help="where the Debian and the packages are kept")
    parser.add_argument("--mirror", help="where debootstrap fetches from")
    parser.add_argument("--out", type=Path, default=Path("dist/arm64-tests"), help="where results go")
    options = parser.parse_args()
    try:
        levels = choose_levels(filter(None, options.levels.split(",")))
        if not options.wheel.is_file():
            raise click.BadParameter(f"there is no {options.wheel}: make arm64 makes it")
        results = run_levels(levels, options)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        return 2
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip() if error.stderr else "it has told why"
        click.echo(f"error: {' '.join(map(str, error.cmd[:6]))} ... failed: {said}", err=True)
        return 2
    report = write_report(options.out, results, levels, options.wheel.name)
    click.echo(f"\n{table(results)}\n\n{report}")
    return 0 if all(result.is_right for result in results) else 1


def run_levels(levels: tuple[Level, ...], options: argparse.Namespace) -> list[LevelResult]:
    """Prepare what is needed, and run each level."""
    root.check_host()
    root.register_emulator()
    folder = options.folder or cache_root() / "arm64-root"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        return _run_in(folder, levels, options)


def _run_in(folder: Path, levels: tuple[Level, ...], options: argparse.Namespace) -> list[LevelResult]:
    guest = Guest(
        root=root.make_root(folder, options.mirror),
        packages=root.make_packages(folder, REPOSITORY / "pyproject.toml"),
        source=root.copy_source(REPOSITORY, folder / "source"),
    )
    click.echo("the smoke test on this machine, to compare with")
    given = options.out / "given"
    given.mkdir(parents=True, exist_ok=True)
    shutil.copy2(options.wheel, given)
    command = [sys.executable, "-m", "tests.arm64.smoke", "--out", str(given / "here.json")]
    if subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **_ONE_THREAD}).returncode:
        raise click.ClickException("the smoke test fails on this machine: mend that first")
    compile_python(guest, levels[0])
    n_cores = len(os.sched_getaffinity(0))
    n_beside = min(n_cores, len(levels))
    # The one with all tests takes longest, so it begins first.
    order = sorted(levels, key=lambda level: not level.runs_all)
    with ThreadPoolExecutor(n_beside) as pool:
        runs = {
            level: pool.submit(run_level, guest, level, options, given, max(1, n_cores // n_beside))
            for level in order
        }
    return [runs[level].result() for level in levels]


def compile_python(guest: Guest, level: Level) -> None:
    """Have Python's bytecode made once, not by each of the many processes that tests start."""
    click.echo("compiling Python's sources")
    folders = {"/usr/local/lib/python3.11/dist-packages": guest.packages, "/src": guest.source}
    guest.run(
        level, ["python3", "-m", "compileall", "-q", "-j", "2", *folders], timeout_s=1800, write=folders
    )


def run_level(
    guest: Guest, level: Level, options: argparse.Namespace, given: Path, n_processes: int
) -> LevelResult:
    """Install the library on a level, run smoke test and tests, and tell what came of it.

    Args:
        guest: The root.
        level: The processor.
        options: Of the command line.
        given: Folder with the wheel and the answers to compare with.
        n_processes: That run tests.
    """
    click.echo(f"{level.name}: begins")
    out = options.out / level.name
    out.mkdir(parents=True, exist_ok=True)
    for name in ("smoke.json", "tests.xml"):
        (out / name).unlink(missing_ok=True)
    cpu_file = out / "cpuinfo"
    features = guest.write_cpuinfo(level, cpu_file)
    problems = []

    def run(what: str, command: list[str], limit_s: float, log: Path) -> float:
        start_s = time.monotonic()
        try:
            with log.open("wb") as output:
                code = guest.run(
                    level,
                    command,
                    timeout_s=limit_s,
                    read={"/proc/cpuinfo": cpu_file, "/given": given},
                    write={"/out": out},
                    settings={"QWEN_EDGE_NATIVE": "/out/native", **_ONE_THREAD},
                    output=output,
                ).returncode
            if code:
                problems.append(f"{what}: exit code {code}, see {log}")
        except subprocess.TimeoutExpired:
            problems.append(f"{what}: not done after {limit_s / 60:.0f} min")
        return time.monotonic() - start_s

    setup = ["python3", "-m", "qwen_edge", "setup", "--wheel", f"/given/{options.wheel.name}"]
    run("setup", setup, 900, out / "setup.txt")
    smoke = ["python3", "-m", "tests.arm64.smoke", "--out", "/out/smoke.json", "--expect", "/given/here.json"]
    smoke_s = run("smoke test", [*smoke, "--module", level.module], _SMOKE_LIMIT_S, out / "smoke.txt")
    click.echo(f"\n{level.name}\n{(out / 'smoke.txt').read_text(errors='replace')}")
    paths, selection = choose_tests(level, options.tests)
    pytest = [*_PYTEST, "-n", str(n_processes)]
    tests_s = run("tests", [*pytest, *paths], _TESTS_LIMIT_S, out / "tests.txt") if paths else 0.0
    result = LevelResult(
        name=level.name,
        qemu_cpu=level.qemu_cpu,
        features=tuple(sorted(features)),
        selection=selection,
        smoke=read_smoke(out / "smoke.json"),
        tests=read_junit(out / "tests.xml"),
        smoke_s=smoke_s,
        tests_s=tests_s,
        problems=tuple(problems),
    )
    click.echo(table([result]))
    return result


def choose_tests(level: Level, wanted: str) -> tuple[tuple[str, ...], str]:
    """Return the paths of the tests to run on a level, and how to name the selection."""
    if wanted == "none":
        return (), "none"
    if wanted == "all" or (wanted == "auto" and level.runs_all):
        return ("tests/unit",), "all fast"
    return CHOSEN, "chosen"


if __name__ == "__main__":
    sys.exit(main())
