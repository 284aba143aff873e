"""One fault: how it is run, and what of its words is kept."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qwen_edge.native.builds import builds_folder
from tests.faults.world import REPOSITORY, Stock, World

ROOT = Path(__file__).resolve().parents[2]
# The command as a process of its own; FAULT_ names what is put in its way. It leaves the class of its error behind.
_PROGRAM = """
import json, os, sys
def blocked(name):
    return name.partition(".")[0] in os.environ.get("FAULT_WITHOUT", "").split(",")
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if blocked(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
if os.environ.get("FAULT_WITHOUT"):
    import importlib.util
    sys.meta_path.insert(0, Blocker())
    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if blocked(name) else find_spec(name, *rest)
def note(error):
    if isinstance(error, Exception):
        with open(os.environ["FAULT_REPORT"], "w") as file:
            file.write(type(error).__name__)
import click
invoke = click.Context.invoke
def noting(self, *args, **kwargs):
    try:
        if os.environ.get("FAULT_INTERRUPT") and self.info_name == sys.argv[1]:
            import signal
            signal.raise_signal(int(os.environ["FAULT_INTERRUPT"]))
        return invoke(self, *args, **kwargs)
    except BaseException as error:
        note(error)
        raise
click.Context.invoke = noting
show = click.ClickException.show
def showing(self, *args, **kwargs):
    note(self)
    return show(self, *args, **kwargs)
click.ClickException.show = click.UsageError.show = showing
if os.environ.get("FAULT_DISK_LOOKS_FREE"):
    import shutil
    usage = shutil.disk_usage
    shutil.disk_usage = lambda path: usage("/")
if os.environ.get("FAULT_NO_USER"):
    import pwd
    def nobody(uid):
        raise KeyError(uid)
    pwd.getpwuid = nobody
if os.environ.get("FAULT_IMPATIENT"):
    from qwen_edge.hub import web
    object.__setattr__(web.PATIENCE, "first_wait_s", 0.001)
    object.__setattr__(web.PATIENCE, "timeout_s", 3.0)
    object.__setattr__(web.PATIENCE, "reach_s", 0.3)
"""
_COMMAND = _PROGRAM + "from qwen_edge.__main__ import run\nrun()\n"
# A program of the library, as a person writes it who shows errors as the command line does.
_LIBRARY = (
    _PROGRAM
    + """
from qwen_edge.errors import QwenEdgeError
try:
    exec(sys.argv[1])
except QwenEdgeError as error:
    note(error)
    sys.exit(f"error: {error}")
"""
)
_TIMEOUT_S = 180.0
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _PR_CAPBSET_DROP = 1, 2, 24
SMALL_DISK = "small"


def nothing(world: World) -> None:
    """Put nothing in the folder."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A row of the table.

    Attributes:
        group: What it is about.
        name: The fault in words.
        command: As typed behind `qwen-edge`, in the folder of the fault.
        python: A program of the library, for what no command does.
        make: Brings the fault about.
        stdin: What is piped in.
        stdout: What takes the answer: "pipe", "full" (a full disk), or "gone" (a reader that went away).
        env: Variables; "" removes one.
        limits: Resource limits of the process.
        small_disk_bytes: Size of the file system mounted at small/; None: there is none.
        is_no_root: The command has the rights of a user, also where the tests run as root.
        leaves: Names of files that must be there afterwards as they were before.
    """

    group: str
    name: str
    command: str = ""
    python: str = ""
    make: Callable[[World], object] = nothing
    stdin: bytes = b""
    stdout: Literal["pipe", "full", "gone"] = "pipe"
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[int, int] = field(default_factory=dict)
    small_disk_bytes: int | None = None
    is_no_root: bool = False
    leaves: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command answered to a fault.

    Attributes:
        error: Class of the error; "" where there was none.
        exit_code: Of the process.
        message: Its words on stderr, from the error on, with what differs from run to run replaced.
    """

    error: str
    exit_code: int
    message: str


# What differs from run to run, and what stands for it in the table.
_MASKS = (
    (re.compile(r"http://127\.0\.0\.1:\d+"), "HUB"),
    (re.compile(r"\(process \d+\)"), "(process N)"),
    (re.compile(r"[\d.]+ GB of this machine's [\d.]+ GB"), "N GB of this machine's N GB"),
    (re.compile(r"[\d,.]+ (?:kB|MB|GB) are free"), "N MB are free"),
    (re.compile(r"[\d,.]+ (?:kB|MB)( of [\d,.]+ [kMG]B)? were written"), r"N MB\1 were written"),
    (re.compile(r"n_ctx=\d+ \(--n-ctx \d+\)"), "n_ctx=N (--n-ctx N)"),
    (re.compile(r"another model, [\w.-]+@\w+"), "another model, NAME@TYPE"),
    # Whether this fits too depends on the machine.
    (re.compile(r"; (kv_type=\"q8_0\" with )?flash_attention=[^;.]*"), ""),
    (re.compile(r"(allows|program itself takes|may have|has|have) [\d,.]+ (MB|GB)"), r"\1 N \2"),
    (re.compile(r"/(resolve|snapshots)/[0-9a-f]{40}/"), r"/\1/COMMIT/"),
    (re.compile(r"/\S*/(python[\d.]*)\b"), r"\1"),
    (re.compile(r"m{40,}"), "m…m"),
)
_BEGINNINGS = ("error: ", "Error: ", "warning: ", "interrupted", "terminated")


def run_fault(fault: Fault, folder: Path, stock: Stock) -> Outcome:
    """Bring a fault about in a folder, run the command, and return what it answered."""
    world = World(folder, stock, dict(fault.env))
    with world.closing:
        fault.make(world)
        before = {name: (folder / name).read_bytes() for name in fault.leaves}
        result, error = _run(fault, world)
    for name, content in before.items():
        assert (folder / name).read_bytes() == content, f"{name} was changed"
    halves = [path for path in folder.rglob(".*.part") if path.is_file()]
    assert not halves, f"{halves} were left behind"
    return Outcome(error=error, exit_code=result.returncode, message=_words(result.stderr, folder))


def run_whole(*args: str, cwd: Path) -> None:
    """Run a command that has to succeed."""
    environment = _environment(cwd, {})
    result = subprocess.run(
        [sys.executable, "-m", "qwen_edge", *args], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def can_mount() -> bool:
    """Return whether this user may mount a small file system in a namespace of its own."""
    try:
        done = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def _run(fault: Fault, world: World) -> tuple[subprocess.CompletedProcess[str], str]:
    address = f"{world.env.get('HF_ENDPOINT', '')}/files/{REPOSITORY}/tiny-BF16.gguf"
    typed = [address if word == "URL" else word for word in shlex.split(fault.command)]
    command = [sys.executable, "-c", _COMMAND, *typed]
    if fault.python:
        command = [sys.executable, "-c", _LIBRARY, fault.python]
    if fault.small_disk_bytes is not None:
        (world.folder / SMALL_DISK).mkdir()
        script = f'mount -t tmpfs -o size={fault.small_disk_bytes} none {SMALL_DISK} && exec "$@"'
        command = ["unshare", "-rm", "sh", "-c", script, "sh", *command]
    with tempfile.NamedTemporaryFile("r") as report, _stdout(fault) as stdout:
        result = subprocess.run(
            command,
            cwd=world.folder,
            env=_environment(world.folder, {**world.env, "FAULT_REPORT": report.name}),
            input=fault.stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=_TIMEOUT_S,
            preexec_fn=lambda: _restrict(fault),
        )
        error = report.read()
    stderr = result.stderr.decode("utf-8", "replace")
    return subprocess.CompletedProcess(command, result.returncode, stderr=stderr), error


@contextlib.contextmanager
def _stdout(fault: Fault) -> Iterator[int]:
    """Give the file descriptor that takes the answer."""
    if fault.stdout == "gone":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full" if fault.stdout == "full" else os.devnull, os.O_WRONLY)
    try:
        yield writer
    finally:
        os.close(writer)


def _environment(folder: Path, changes: Mapping[str, str]) -> dict[str, str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "cache" / "huggingface"),
        "QWEN_EDGE_CACHE": str(folder / "cache"),
        "QWEN_EDGE_NATIVE": str(builds_folder()),
        "COLUMNS": "200",
        **changes,
    }
    return {name: value for name, value in environment.items() if value != ""}


def _restrict(fault: Fault) -> None:
    """Run in the child: limits, and a root that may no more than a user."""
    for kind, value in fault.limits.items():
        resource.setrlimit(kind, (value, value))
    if fault.is_no_root and os.geteuid() == 0:
        import ctypes

        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def _words(stderr: str, folder: Path) -> str:
    lines = stderr.splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith(_BEGINNINGS)), len(lines))
    text = "\n".join(lines[start:])
    if "Traceback" in stderr:
        text = stderr.strip()
    for name in {str(folder.resolve()), str(folder)}:
        text = text.replace(name, "DIR")
    for pattern, replacement in _MASKS:
        text = pattern.sub(replacement, text)
    return text


def read_results(path: Path) -> dict[str, Outcome]:
    """Read what the faults answered when they were last written down, by name."""
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: Outcome(**row) for name, row in rows.items()}
