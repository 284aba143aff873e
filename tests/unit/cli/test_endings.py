"""Exit codes and last words."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from qwen_edge.cli import list as list_command
from qwen_edge.cli.main import main
from qwen_edge.errors import ConfigError
from qwen_edge.paths import cache_root

Capture = pytest.CaptureFixture[str]


def end_list_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(list_command, "select", fail)
    return main(["list"])


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("no such thing", hint="Do this."), 1, "error: no such thing\n  Do this.\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.gguf"), 1, "error: No such file or directory: a.gguf\n"),
        (OSError("only words"), 1, "error: only words\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.Abort(), 130, "interrupted\n"),
        (SystemExit(143), 143, "terminated\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (MemoryError(), 1, "error: out of memory\n  Close other programs, or take a smaller model or --n-ctx: qwen-edge list shows what fits.\n"),
        (RecursionError(), 1, "error: the input is nested too deeply\n"),
        (click.FileError("a", "wrong"), 1, "Error: Could not open file 'a': wrong\n"),
    ],
)  # fmt: skip
def test_every_end_has_words_and_a_code(
    error: BaseException, code: int, words: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert end_list_with(error, monkeypatch) == code
    assert capsys.readouterr() == ("", words)


def test_a_bug_says_so_and_where(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert end_list_with(TypeError("unforeseen"), monkeypatch) == 70
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: this is a bug in qwen-edge: TypeError: unforeseen (test_endings.py:")
    assert "QWEN_EDGE_DEBUG=1" in second
    monkeypatch.setenv("QWEN_EDGE_DEBUG", "1")
    assert end_list_with(TypeError("unforeseen"), monkeypatch) == 70
    assert capsys.readouterr().err.startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize(
    ("number", "is_ours", "hint"),
    [
        (errno.ENOSPC, True, "QWEN_EDGE_CACHE=FOLDER"),
        (errno.EROFS, True, "QWEN_EDGE_CACHE=FOLDER"),
        (errno.ENOSPC, False, "Free some space"),
        (errno.EACCES, False, "Name another place"),
    ],
)
def test_what_cannot_be_written_says_what_to_do(
    number: int, is_ours: bool, hint: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(cache_root() / "models" / "a" if is_ours else Path("/elsewhere/a"))
    assert end_list_with(OSError(number, "cannot", path), monkeypatch) == 1
    assert capsys.readouterr().err.startswith(f"error: cannot: {path}\n  {hint}")


def qwen_edge(*args: str, redirect: str) -> subprocess.CompletedProcess[str]:
    command = f'"$0" -m qwen_edge "$@" {redirect}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, *args], capture_output=True, text=True, timeout=60
    )


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "qwen_edge", "list", "--format", "json"]
    result = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write_end)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize("args", [["--help"], ["list"], ["list", "--format", "json"]])
def test_a_full_disk_behind_stdout_is_an_error(args: list[str]) -> None:
    result = qwen_edge(*args, redirect="> /dev/full")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "error: stdout cannot be written: No space left on device"


@pytest.mark.parametrize("streams", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(streams: str) -> None:
    result = qwen_edge("list", "qwen3-0.6b", redirect=streams)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False)


def test_a_name_of_other_bytes_is_shown() -> None:
    code = "import sys; sys.argv = ['', 'list', b'\\xff'.decode('utf-8', 'surrogateescape')]\n"
    code += (
        "import qwen_edge.__main__ as m, click; m._open_standard_streams(); click.echo(sys.argv[2]); m.run()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (shown.returncode, shown.stdout) == (1, "\\udcff\n")
    assert "no model has" in shown.stderr


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["lst"], 2, "Did you mean 'list'?"),
        (["list", "--lcal"], 2, "Did you mean '--local'?"),
        (["run", "x", "Hi", "--tempertaure", "0"], 2, "Did you mean '--temperature'?"),
        (["run", "x", "Hi", "--verbose"], 2, "It goes before the command"),
        (["run", "qwen3-0.6", "Hi"], 1, "Did you mean qwen3-0.6b?"),
        (["run", "qwen3-0.6b@q4_m", "Hi"], 1, "Did you mean Q4_K_M"),
        (["rm", "qwen3-0.6"], 1, "Did you mean qwen3-0.6b?"),
        (["pull", "qwen3-0.6b@q4km"], 1, "Did you mean Q4_K_M"),
        (["pull", "qwen3-0.6b", "--source", "hugingface"], 2, "'huggingface'"),
        (["bench", "qwen3-0,6b"], 1, "Did you mean qwen3-0.6b?"),
        (["quantize", "x.gguf", "-t", "Q4_KM"], 1, "Did you mean Q4_K_M"),
        (["demo", "--model", "qwen3-06b"], 1, "Did you mean qwen3-0.6b?"),
    ],
)
def test_unknown_names_offer_the_nearest(args: list[str], code: int, words: str, capsys: Capture) -> None:
    assert main(args) == code
    assert words in capsys.readouterr().err


def test_a_path_with_a_typing_error(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples" / "tiny-qwen3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for args in (["convert", "examples/tiny-qwn3"], ["run", "examples/tiny-qwn3", "Hi"]):
        assert main(args) == 1
        assert "Did you mean the path examples/tiny-qwen3?" in capsys.readouterr().err


def test_without_a_home_what_needs_none_works(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QWEN_EDGE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert main(["list", "qwen3-0.6b"]) == 0
    assert "qwen3-0.6b" in capsys.readouterr().out
    assert main(["list", "--local"]) == 0
    capsys.readouterr()
    assert main(["du"]) == 1
    assert capsys.readouterr().err == (
        "error: there is no home folder to keep files in\n  Set QWEN_EDGE_CACHE to a folder that can be written.\n"
    )
    monkeypatch.setenv("QWEN_EDGE_CACHE", "~nobody-of-this-name/x")
    assert main(["du"]) == 1
    assert "there is no such user" in capsys.readouterr().err
