"""What the emulated machine is made of: a Debian for arm64, Python packages for it, a copy of this repository.

Each is made under another name and renamed when it is whole. Nothing of the machine around is changed, but that the
kernel is told to hand ARM programs to QEMU, where it is not yet.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import click

SUITE = "bookworm"
PYTHON = "3.11"  # the suite's
_INCLUDED = "python3,python3-venv,ca-certificates"
_MOUNT_POINTS = ("src", "out", "given", "usr/local/lib/python3.11/dist-packages")
# The glibc of the suite is 2.36.
_PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)), "manylinux2014_aarch64")
# Tools of `make check`, which looks at sources and does not depend on the processor.
_NOT_NEEDED = ("mypy", "ruff", "types-")

_PROGRAMS = {
    "debootstrap": "debootstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "update-binfmts": "binfmt-support",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "ip": "iproute2",
    "git": "git",
}
_BINFMT = Path("/proc/sys/fs/binfmt_misc")


def check_host(
    which: Callable[[str], str | None] = shutil.which, user: Callable[[], int] = os.geteuid
) -> None:
    """See that this machine can make and enter a root.

    Raises:
        click.ClickException: It cannot; the message tells what to install.
    """
    if missing := sorted({package for program, package in _PROGRAMS.items() if which(program) is None}):
        raise click.ClickException(f"missing here: apt-get install {' '.join(missing)}")
    if user() != 0:
        raise click.ClickException("a root is made and entered by root only: sudo make test-arm64")


def register_emulator() -> None:
    """Have the kernel hand ARM programs to QEMU.

    Raises:
        click.ClickException: It does not let itself be told.
    """
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)])
    if not (_BINFMT / "qemu-aarch64").exists():
        subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"])
    entry = _BINFMT / "qemu-aarch64"
    if not entry.exists() or not entry.read_text().startswith("enabled"):
        raise click.ClickException(
            f"the kernel does not hand ARM programs to QEMU: {entry} is not there or not enabled.\n"
            "Container: start it with --privileged. Else: mount -t binfmt_misc binfmt_misc "
            f"{_BINFMT}; update-binfmts --enable qemu-aarch64"
        )


def make_root(folder: Path, mirror: str | None = None) -> Path:
    """Return a Debian for arm64 in this folder, made now if it is not there: about four minutes.

    Raises:
        subprocess.CalledProcessError: debootstrap failed; it has told why.
    """
    root = folder / f"debian-{SUITE}-{_digest(_INCLUDED)}"
    if root.exists():
        return root
    click.echo(f"making {root}: some minutes", err=True)
    unfinished = _unfinished(root)
    command = [
        "debootstrap",
        "--arch=arm64",
        "--variant=minbase",
        f"--include={_INCLUDED}",
        SUITE,
        str(unfinished),
    ]
    # A mount namespace of its own: debootstrap leaves /proc mounted when it is interrupted.
    subprocess.run(
        ["unshare", "--mount", "--fork", "--kill-child", *command, *([mirror] if mirror else [])],
        check=True,
        stdout=sys.stderr,
    )
    for inside in _MOUNT_POINTS:
        (unfinished / inside).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(unfinished / "var/cache/apt")
    unfinished.rename(root)
    return root


def make_packages(folder: Path, pyproject: Path) -> Path:
    """Return a folder of the Python packages that the tests need, for the root's Python; fetched now if need be.

    pip runs outside: under emulation it takes many times as long.

    Raises:
        subprocess.CalledProcessError: pip failed; it has told why.
    """
    needed = list(requirements(tomllib.loads(pyproject.read_text())["project"]))
    packages = folder / f"packages-{_digest(PYTHON, *needed)}"
    if packages.exists():
        return packages
    click.echo(f"fetching packages for aarch64 into {packages}", err=True)
    unfinished = _unfinished(packages)
    tags = [option for tag in _PLATFORMS for option in ("--platform", tag)]
    subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pip",
                "--disable-pip-version-check",
                "install",
                "--quiet",
                "--no-compile",
            ),
            *("--target", str(unfinished), "--only-binary=:all:", "--implementation", "cp"),
            *("--python-version", PYTHON, *tags, *needed),
        ],
        check=True,
        stdout=sys.stderr,
    )
    # The source is where an editable install has it.
    (unfinished / "qwen-edge.pth").write_text("/src\n")
    for older in folder.glob("packages-*"):
        if older != unfinished:
            shutil.rmtree(older)
    unfinished.rename(packages)
    return packages


def requirements(project: dict[str, object]) -> Iterator[str]:
    """Yield what `pip install qwen-edge[dev]` asks for, extras of its own resolved, without what only checks sources.

    Args:
        project: The table of that name in pyproject.toml.
    """
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    seen = set()

    def walk(lines: list[str]) -> Iterator[str]:
        for line in lines:
            if line.startswith(f"{project['name']}["):
                for extra in line.partition("[")[2].rstrip("]").split(","):
                    yield from walk(extras[extra.strip()])
            elif line not in seen and not line.startswith(_NOT_NEEDED):
                seen.add(line)
                yield line

    dependencies = project["dependencies"]
    assert isinstance(dependencies, list)
    yield from walk([*dependencies, *extras["dev"]])


def copy_source(repository: Path, target: Path) -> Path:
    """Copy the files of the working tree that git knows or would add, and put the package's metadata beside them.

    Raises:
        subprocess.CalledProcessError: There is no git repository, or no metadata can be made.
    """
    listed = subprocess.run(
        ["git", "-C", str(repository), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout.decode()
    if target.exists():
        shutil.rmtree(target)
    for name in filter(None, listed.split("\0")):
        source, copy = repository / name, target / name
        if source.is_symlink() or source.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
    code = "from setuptools.build_meta import prepare_metadata_for_build_wheel as make; make('.')"
    subprocess.run([sys.executable, "-c", code], cwd=target, check=True, capture_output=True)
    return target


def _unfinished(path: Path) -> Path:
    """Return the name that a folder has while it is made; what an interrupted run left there is removed."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    return unfinished


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
