"""Whether limits of the address space (ulimit -v) hold here: user-mode emulators take them and do nothing."""

from __future__ import annotations

import functools
import resource
import subprocess
import sys

import pytest


@functools.cache
def _limits_hold() -> bool:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    code = "import resource; print(resource.getrlimit(resource.RLIMIT_AS)[0])"
    said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, preexec_fn=limit, check=True)
    return int(said.stdout) == 2 << 30


def skip_without_limits() -> None:
    """Skip a test that needs them."""
    if not _limits_hold():
        pytest.skip("emulated: a limit of the address space is taken and not kept")
