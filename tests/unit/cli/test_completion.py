"""Completion, asked for as a shell does."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from qwen_edge import paths


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which `qwen-edge` is the command under test."""
    command = tmp_path / "bin" / "qwen-edge"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m qwen_edge "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "TERM": "dumb"}


def asked(words: str, environment: Mapping[str, str]) -> list[str]:
    """Return what the answer to the function of the script is, for words of which the last is incomplete."""
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), "_QWEN_EDGE_COMPLETE": "bash_complete"}  # fmt: skip
    result = subprocess.run(
        ["qwen-edge"], env={**environment, **variables}, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    return [line.removeprefix("plain,") for line in result.stdout.splitlines() if line.startswith("plain,")]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("qwen-edge co", ["convert", "completion"]),
        ("qwen-edge verify-b", ["verify-bundle"]),
        ("qwen-edge pull qwen3-emb", ["qwen3-embedding-0.6b"]),
        ("qwen-edge pull qwen3-0.6b @ q4_k", ["@q4_k_m", "@q4_k_s"]),
        ("qwen-edge pull qwen3-0.6b @ Q8", ["@Q8_0"]),
        ("qwen-edge pull qwen3-0.6b@q8", ["qwen3-0.6b@q8_0"]),
        ("qwen-edge run qwen3-0.6b @ q8_0 -f x --thr", ["--threads"]),
        ("qwen-edge pull x --source mod", ["modelscope"]),
        ("qwen-edge run --thr", ["--threads"]),
        ("qwen-edge rm qwen", []),
    ],
)
def test_what_is_offered(words: str, offered: list[str], environment: dict[str, str]) -> None:
    assert asked(words, environment) == offered


def test_what_is_here_comes_with_its_types(environment: dict[str, str]) -> None:
    file = paths.models_folder() / "Qwen--Qwen3-0.6B-GGUF" / "Qwen3-0.6B-Q4_0.gguf"
    file.parent.mkdir(parents=True)
    file.touch()
    assert asked("qwen-edge rm qwen", environment) == ["qwen3-0.6b@Q4_0"]
    assert asked("qwen-edge run qwen3-0.6b @", environment) == ["@Q4_0"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_for_the_shell_and_say_where_to_put_them(shell: str, environment: dict[str, str]) -> None:
    result = subprocess.run(
        ["qwen-edge", "completion", shell], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0
    assert f"_QWEN_EDGE_COMPLETE={shell}_complete" in result.stdout
    assert "To keep it: " in result.stderr


def test_a_shell_that_has_none() -> None:
    from qwen_edge.cli.main import main

    assert main(["completion", "tcsh"]) == 2


def test_answering_loads_nothing_heavy(environment: dict[str, str]) -> None:
    code = (
        "import sys; from qwen_edge.cli.main import main; main()\n"
        "assert not {'numpy', 'rich', 'llama_cpp', 'requests', 'httpx'} & set(sys.modules), sorted(sys.modules)"
    )
    for words in ("qwen-edge pull qw", "qwen-edge run qwen3-0.6b @"):
        variables = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_QWEN_EDGE_COMPLETE": "bash_complete"}  # fmt: skip
        subprocess.run(
            [sys.executable, "-c", code], env={**environment, **variables}, check=True, timeout=60, stdout=subprocess.DEVNULL
        )  # fmt: skip


def test_tab_in_bash_itself(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "notes-of-mine.txt").touch()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], {**environment, "PS1": "$ "})
    try:
        os.write(terminal, b'eval "$(qwen-edge completion bash 2>/dev/null)"; echo re""ady\n')
        read_until(terminal, "ready\r\n")
        # What was completed is shown by a command in front of it.
        for typed, completed in (
            (b"qwen-edge pull qwen3-emb", "qwen3-embedding-0.6b"),
            (b"qwen-edge pull qwen3-0.6b@q8", "qwen3-0.6b@q8_0"),
            (b"qwen-edge run x -f notes-of", "notes-of-mine.txt"),
        ):
            os.write(terminal, typed + b"\t\x01printf '<%s>' \r")
            read_until(terminal, f"<{completed}>")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def read_until(terminal: int, text: str, timeout_s: float = 60) -> None:
    """Read what a terminal shows until it has shown a text."""
    shown, end = "", time.monotonic() + timeout_s
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        assert ready, f"{text!r} did not come; shown: {shown!r}"
        shown += os.read(terminal, 4096).decode(errors="replace")
