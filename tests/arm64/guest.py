"""Running a command in the ARM root, as one of the emulated processors."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qwen_edge.device.hwcap import features_in_auxv
from tests.arm64.levels import Level, cpuinfo

# setpriv: a harness that is killed takes the namespaces, and with them everything inside, along.
_NAMESPACES = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child")  # fmt: skip
_ENTER = Path(__file__).with_name("enter.sh")


@dataclass(frozen=True, kw_only=True)
class Guest:
    """The root with what is mounted into it.

    Attributes:
        root: A Debian for arm64.
        packages: Python packages for it.
        source: A copy of this repository, made for this: tests may write beside themselves.
    """

    root: Path
    packages: Path
    source: Path

    def run(
        self,
        level: Level,
        command: Sequence[str],
        *,
        timeout_s: float,
        write: Mapping[str, Path] | None = None,
        read: Mapping[str, Path] | None = None,
        settings: Mapping[str, str] | None = None,
        output: IO[bytes] | int | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in /src of the root.

        Args:
            level: The processor.
            command: What to run, in the root's terms.
            timeout_s: When to end it, with all that it started.
            write: Folders or files by where they appear inside, to be written.
            read: The same, to be read.
            settings: Environment variables; names and values without spaces.
            output: Where both its outputs go, as in subprocess.

        Raises:
            subprocess.TimeoutExpired: It took longer.
        """
        settings = {"QEMU_CPU": level.qemu_cpu, **(settings or {})}
        read = {"/usr/local/lib/python3.11/dist-packages": self.packages} | dict(read or {})
        write = {"/src": self.source} | dict(write or {})
        arguments = []
        for kind, folders in (("--read", read), ("--write", write)):
            for inside, outside in folders.items():
                arguments += [kind, str(outside), inside]
        for name, value in settings.items():
            arguments += ["--set", f"{name}={value}"]
        return subprocess.run(
            [*_NAMESPACES, "sh", str(_ENTER), str(self.root), *arguments, "--", "/usr/bin/env", "-C", "/src", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            timeout=timeout_s,
        )  # fmt: skip

    def features(self, level: Level) -> frozenset[str]:
        """Return the features that programs see on a level, by the kernel's names.

        Raises:
            RuntimeError: ARM programs do not run in the root.
        """
        seen = self.run(level, ["cat", "/proc/self/auxv"], timeout_s=60, output=subprocess.PIPE)
        if seen.returncode or not seen.stdout:
            raise RuntimeError(f"no ARM program runs in {self.root}: {seen.stdout.decode(errors='replace')}")
        return features_in_auxv(seen.stdout)

    def write_cpuinfo(self, level: Level, file: Path) -> frozenset[str]:
        """Write the /proc/cpuinfo of a level; return its features."""
        features = self.features(level)
        file.write_text(cpuinfo(level, features, len(os.sched_getaffinity(0))))
        return features
