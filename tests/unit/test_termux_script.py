"""examples/termux/install.sh: each phone here is a PATH with stand-ins for Termux's programs. None of it ran on a phone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "termux"
TOOLS = ("sh", "dirname", "awk", "cat", "sleep", "touch")
PACKAGES = "python python-pip python-ensurepip-wheels python-numpy python-psutil clang cmake ninja libandroid-spawn git"

LOGS = 'echo "$(basename "$0") $*" >> "$LOG"'
PROGRAMS = {
    "uname": "echo aarch64",
    "df": 'echo Filesystem; echo "data 9 9 ${FREE_KB:-9000000} 1% /"',
    "pkg": LOGS,
    "termux-wake-lock": LOGS,
    "termux-wake-unlock": LOGS,
    "termux-setup-storage": LOGS,
    # python -m venv: puts in place what the script uses of an environment
    "python": f'{LOGS}; mkdir -p "$5/bin"; for name in python pip qwen-edge; do cp "$FAKES/program" "$5/bin/$name"; done',
    "program": f'{LOGS}; if [ "$1 ${{STOP:-}}" = "setup now" ]; then touch "$LOG.waits"; sleep 60 & wait $!; fi; exit "${{FAILS:-0}}"',
}


class Phone:
    def __init__(self, folder: Path) -> None:
        self.path, self.root, self.log = folder / "path", folder / "qwen-edge", folder / "log"
        self.path.mkdir()
        shutil.copytree(FOLDER, self.root / "examples" / "termux")
        for tool in (*TOOLS, "basename", "mkdir", "cp"):
            found = shutil.which(tool)
            assert found
            (self.path / tool).symlink_to(found)
        for name, program in PROGRAMS.items():
            self.add(name, program)

    def add(self, name: str, program: str) -> None:
        path = self.path / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{program}\n")
        path.chmod(0o755)

    def command(self, *options: str) -> list[str]:
        return [
            str(self.path / "sh"),
            "-u",
            str(self.root / "examples" / "termux" / "install.sh"),
            *options,
        ]

    def env(self, **env: str) -> dict[str, str]:
        return {
            "PATH": str(self.path),
            "LOG": str(self.log),
            "FAKES": str(self.path),
            "TERMUX_VERSION": "0.118.3",
            **env,
        }

    def run(self, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*options), env=self.env(**env), capture_output=True, text=True, check=False
        )

    @property
    def done(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    return Phone(tmp_path)


def expected(phone: Phone) -> list[str]:
    venv, termux = phone.root / ".venv", phone.root / "examples" / "termux"
    return [
        "termux-wake-lock",
        "pkg upgrade -y",
        f"pkg install -y {PACKAGES}",
        f"python -m venv --clear --system-site-packages {venv}",
        f"{venv}/bin/python -m pip install --disable-pip-version-check -c {termux}/constraints.txt {phone.root}",
        f"{venv}/bin/qwen-edge setup",
        f"{venv}/bin/qwen-edge doctor",
    ]


def logged(phone: Phone, lines: list[str]) -> list[str]:
    """The same lines with the programs' bare names, as the stand-ins log them."""
    bare = (
        line.replace(f"{phone.root / '.venv'}/bin/", "", 1) if line.startswith("/") else line
        for line in lines
    )
    return [line if " " in line else f"{line} " for line in bare]


def test_a_dry_run_prints_the_commands_and_changes_nothing(phone: Phone) -> None:
    done = phone.run("--dry-run")
    assert (done.returncode, done.stdout.splitlines()) == (0, expected(phone))
    assert phone.done == []
    assert not (phone.root / ".venv").exists()
    assert "termux-setup-storage" in phone.run("--dry-run", "--storage").stdout
    assert "qwen-edge setup" not in phone.run("--dry-run", "--no-build").stdout


def test_a_run_does_what_the_dry_run_says_and_lets_the_phone_sleep_again(phone: Phone) -> None:
    done = phone.run()
    assert done.returncode == 0, done.stderr
    assert phone.done == [*logged(phone, expected(phone)), "termux-wake-unlock "]
    assert "qwen-edge chat qwen3-0.6b" in done.stderr


def test_a_second_run_keeps_the_environment(phone: Phone) -> None:
    phone.run()
    phone.log.unlink()
    assert phone.run().returncode == 0
    assert not [line for line in phone.done if "-m venv" in line]
    assert "qwen-edge setup" in phone.done


def test_a_failed_step_ends_it_and_lets_the_phone_sleep(phone: Phone) -> None:
    done = phone.run(FAILS="3")
    assert done.returncode == 3
    assert phone.done[-1] == "termux-wake-unlock "
    assert "qwen-edge setup" not in phone.done


def test_an_interrupted_run_lets_the_phone_sleep(phone: Phone) -> None:
    process = subprocess.Popen(
        phone.command(), env=phone.env(STOP="now"), stderr=subprocess.DEVNULL, start_new_session=True
    )
    waits = Path(f"{phone.log}.waits")
    while not waits.exists():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert phone.done[-1] == "termux-wake-unlock "


@pytest.mark.parametrize(
    ("env", "programs", "said"),
    [
        ({"TERMUX_VERSION": ""}, {}, "this is not Termux"),
        ({"FREE_KB": "1000000"}, {}, "3000 MB of storage are needed, 976 MB are free"),
        ({}, {"uname": "echo armv7l"}, "a 64-bit system is needed, this one is armv7l"),
    ],
)
def test_where_it_cannot_work_it_says_so_first(
    phone: Phone, env: dict[str, str], programs: dict[str, str], said: str
) -> None:
    for name, program in programs.items():
        phone.add(name, program)
    done = phone.run(**env)
    assert done.returncode == 1
    assert said in done.stderr
    assert phone.done == []


def test_too_little_memory_to_compile_asks_for_a_library(phone: Phone) -> None:
    awk = shutil.which("awk")
    phone.add("awk", f'case "$1" in *MemTotal*) echo 900000 ;; *) exec {awk} "$@" ;; esac')
    done = phone.run()
    assert done.returncode == 1
    assert "this one has 878 MB: --no-build, with a library" in done.stderr
    assert phone.run("--no-build").returncode == 0


def test_an_unknown_option_is_a_mistake_of_use(phone: Phone) -> None:
    done = phone.run("--help-me")
    assert done.returncode == 2
    assert "known are --dry-run, --storage and --no-build" in done.stderr


def test_the_constraint_allows_what_qwen_edge_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "huggingface-hub>=0.30" in project["dependencies"]
    lines = (FOLDER / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["huggingface-hub<0.32"]
