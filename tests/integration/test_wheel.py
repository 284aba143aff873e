"""The wheel, away from the checkout: what is in it, and that the command line, the demo and the types work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What tools leave in a checkout.
_NOT_COPIED = (
    ".git",
    ".venv",
    "build",
    "dist",
    "*.egg-info",
    "__pycache__",
    "demo-out",
    ".*_cache",
    ".hypothesis",
)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, made from the source distribution, made from this tree."""
    folder = tmp_path_factory.mktemp("distributions")
    source = folder / "source"
    # Building leaves files in the tree.
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def installed(distributions: Path) -> Path:
    """A folder with the wheel's packages."""
    target = distributions / "site"
    [wheel] = distributions.glob("*.whl")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
    ]
    subprocess.run([*command, str(wheel)], check=True)
    return target


def _run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python somewhere else, with the wheel's packages before those of the checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_module_of_the_tree_is_in_the_wheel_and_in_the_source_distribution(distributions: Path) -> None:
    tracked = {
        path
        for folder in ("convert", "quantize", "bench")
        for path in (f"qwen_edge/{file.relative_to(ROOT)}" for file in (ROOT / folder).rglob("*.py"))
    } | {
        str(file.relative_to(ROOT))
        for file in (ROOT / "qwen_edge").rglob("*.py")
        if file.relative_to(ROOT).parts[1] not in ("convert", "quantize", "bench")
    }
    [wheel] = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        everything = set(archive.namelist())
    packaged = {name for name in everything if name.endswith(".py")}
    assert packaged == tracked
    kernels = {str(file.relative_to(ROOT)) for file in (ROOT / "qwen_edge/native/kernels").iterdir()}
    assert kernels
    assert kernels <= everything, "setup compiles them"
    [source] = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert kernels <= names
    assert {"Makefile", "examples/chat.py", "examples/tiny-qwen3/config.json", "tests/conftest.py"} <= names


def test_every_module_of_the_wheel_is_imported_from_it(installed: Path, tmp_path: Path) -> None:
    # Not those that run when imported, or drive a package that is no dependency.
    program = (
        "import importlib, pkgutil, qwen_edge\n"
        "print(qwen_edge.__file__)\n"
        "for found in pkgutil.walk_packages(qwen_edge.__path__, 'qwen_edge.'):\n"
        "    if not found.name.endswith(('__main__', '.genai_worker')):\n"
        "        print(importlib.import_module(found.name).__file__)\n"
    )
    done = _run(installed, tmp_path, "-W", "ignore", "-c", program)
    assert done.returncode == 0, done.stderr
    files = done.stdout.splitlines()
    assert len(files) > 150
    assert all(Path(file).is_relative_to(installed) for file in files)


def test_the_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    done = _run(installed, tmp_path, "-m", "qwen_edge", "demo", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert "Take tiny-qwen3-" in done.stdout
    assert list((tmp_path / "out").glob("*.gguf"))


def test_type_checkers_see_the_types_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import qwen_edge\n"
        "with qwen_edge.load('m.gguf') as model, model.session() as session:\n"
        "    reveal_type(session.send('Hi').text)\n"
        "    session.send('Hi', thinkin='off')\n"
    )
    done = _run(
        installed, tmp_path, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "mypy"), "program.py"
    )
    assert 'Revealed type is "builtins.str"' in done.stdout or 'Revealed type is "str"' in done.stdout
    assert 'Unexpected keyword argument "thinkin"' in done.stdout
    assert "Found 1 error" in done.stdout, done.stdout
