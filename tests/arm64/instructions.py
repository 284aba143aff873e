"""Which instructions the kernels of a portable wheel have: `python -m tests.arm64.instructions DIST`.

A module that lacks what it is named for, or has what its processors do not know, ends this with 1: a compiler may drop a
flag without a word, and the first to notice would be a phone.
"""

from __future__ import annotations

import argparse
import collections
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from qwen_edge.native.cpu_modules import ARM_MODULES, module_files

# Column -> the feature that it belongs to, and the lines of a disassembly that show it.
# Source: Arm Architecture Reference Manual for A-profile, "A64 instruction set".
SHOWN: dict[str, tuple[str, re.Pattern[str]]] = {
    "sdot": ("asimddp", re.compile(r"[su]dot\s+v")),
    "fmla .8h": ("asimdhp", re.compile(r"fmla\s+v\d+\.8h")),
    "smmla": ("i8mm", re.compile(r"smmla\s+v")),
    "usdot": ("i8mm", re.compile(r"usdot\s+v")),
    "SVE": ("sve", re.compile(r"(?:ptrue|whilelo|ld1b|st1w)\s")),
    "SVE sdot": ("sve", re.compile(r"[su]dot\s+z")),
    "SVE smmla": ("sve", re.compile(r"smmla\s+z")),
}
# What a module must have, by the feature it is named for. SVE2 adds nothing that llama.cpp asks for by name.
_PROOF = {"asimddp": "sdot", "asimdhp": "fmla .8h", "i8mm": "smmla", "sve": "SVE"}

_INSTRUCTION = re.compile(r"^\s*[0-9a-f]+:\s+(?P<text>\S.*)$", re.MULTILINE)


def count(disassembly: str) -> dict[str, int]:
    """Return how often each column of SHOWN occurs in what objdump printed without raw bytes."""
    counts: collections.Counter[str] = collections.Counter()
    for line in _INSTRUCTION.finditer(disassembly):
        for column, (_, pattern) in SHOWN.items():
            if pattern.match(line["text"]):
                counts[column] += 1
    return {column: counts[column] for column in SHOWN}


def mistakes(level: str, needs: Iterable[str], counts: Mapping[str, int]) -> list[str]:
    """Return what is wrong with a module: what it lacks, and what its processors would not know."""
    needs = set(needs)
    lacking = [
        f"{level} has no {_PROOF[need]}, which it is named for"
        for need in _PROOF
        if need in needs and not counts[_PROOF[need]]
    ]
    foreign = [
        f"{level} has {counts[column]} times {column}, which needs {feature}"
        for column, (feature, _) in SHOWN.items()
        if counts[column] and feature not in needs
    ]
    return lacking + foreign


def table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Return the counts as a Markdown table, one module a row."""
    rows = [["module", "needs", *SHOWN], ["---"] * (len(SHOWN) + 2)]
    rows += [
        [level, " ".join(ARM_MODULES[level]) or "-", *(str(found[column]) for column in SHOWN)]
        for level, found in counts.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def disassembler() -> str:
    """Return an objdump that reads ARM code.

    Raises:
        SystemExit: There is none.
    """
    for name in ("aarch64-linux-gnu-objdump", "llvm-objdump"):
        if found := shutil.which(name):
            return found
    sys.exit("no objdump for aarch64; Debian, Ubuntu: sudo apt-get install binutils-aarch64-linux-gnu")


def look(library: Path) -> dict[str, dict[str, int]]:
    """Return the counts of each module in a folder, weakest level first."""
    objdump, files = disassembler(), module_files(library)
    counts = {}
    for level in ARM_MODULES:
        command = [objdump, "-d", "--no-show-raw-insn", str(files[level])]
        counts[level] = count(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path, help="folder of the wheel")
    wheels = sorted(parser.parse_args().dist.glob("*_aarch64.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        sys.exit("no wheel for aarch64 there; make arm64 builds one")
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheels[-1]) as archive:
            archive.extractall(folder)
        counts = look(Path(folder) / "llama_cpp/lib")
    click.echo(f"instructions in the kernels of {wheels[-1].name}\n\n{table(counts)}\n")
    found = [line for level, needs in ARM_MODULES.items() for line in mistakes(level, needs, counts[level])]
    for line in found:
        click.echo(line, err=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
