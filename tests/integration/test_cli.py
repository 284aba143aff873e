"""The run and chat commands, as a person or a script calls them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.cli.main import main

Run = subprocess.CompletedProcess[str]


def qwen_edge(*args: str | Path, stdin: str = "") -> Run:
    # One thread: more gain nothing on a model this small, and stall where cores are shared.
    command = [sys.executable, "-m", "qwen_edge", *map(str, args), "--threads", "1"]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300)


def test_run_prints_the_answer_on_stdout_and_the_rest_on_stderr(tiny_path: Path) -> None:
    result = qwen_edge(
        "run", tiny_path, "What is the capital of Greece?", "--thinking", "on", "--temperature", "0"
    )
    assert (result.returncode, result.stdout) == (0, "Athens.\n")
    assert result.stderr.startswith("thinking: ")
    assert "tokens/s" in result.stderr


def test_run_json_has_every_field(tiny_path: Path) -> None:
    result = qwen_edge(
        "run", tiny_path, "What is the capital of Greece?", "--thinking", "off", "--max-tokens", "30", "--n-ctx", "512",
        "--temperature", "0.7", "--seed", "1", "--format", "json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    reply: dict[str, Any] = json.loads(result.stdout)
    assert set(reply) == {"text", "thinking", "tool_calls", "finish_reason", "stats"}
    assert {
        "prompt_tokens", "cached_tokens", "generated_tokens", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s",
        "peak_memory_bytes",
    } <= set(reply["stats"])  # fmt: skip
    assert reply["finish_reason"] == "stop"
    assert reply["stats"]["peak_memory_bytes"] > tiny_path.stat().st_size


def test_run_ends_in_time(tiny_path: Path) -> None:
    result = qwen_edge("run", tiny_path, "word " * 2000, "--timeout", "0.001", "--format", "json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["finish_reason"] == "cancelled"
    shown = qwen_edge("run", tiny_path, "word " * 2000, "--timeout", "0.001")
    assert "cancelled" in shown.stderr
    assert qwen_edge("run", tiny_path, "Hi", "--timeout", "0").returncode == 2


@pytest.mark.parametrize("options", [[], ["--no-prefix-cache"]])
def test_run_keeps_the_prefix_on_disk_unless_told_not_to(options: list[str], tiny_path: Path) -> None:
    result = qwen_edge(
        "run",
        tiny_path,
        "Say Anna.",
        "--system",
        "Be brief.",
        "--max-tokens",
        "5",
        "--format",
        "json",
        *options,
    )
    assert result.returncode == 0, result.stderr
    assert (json.loads(result.stdout)["stats"]["prefix_cache"] == "off") == bool(options)


@pytest.mark.parametrize(
    ("prompt", "stdin"),
    [(["-"], "Say Anna."), ([], "Say Anna.\n"), (["Say Anna."], ""), ([], "\ufeffSay Anna.")],
)
def test_run_reads_the_prompt_from_stdin(prompt: list[str], stdin: str, tiny_path: Path) -> None:
    result = qwen_edge("run", tiny_path, *prompt, "--thinking", "off", "--temperature", "0", stdin=stdin)
    assert result.stdout == "Anna\n"


def test_run_reads_files(tiny_path: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("word " * 300)
    args = ("--thinking", "off", "--max-tokens", "2", "--format", "json")
    short = json.loads(qwen_edge("run", tiny_path, "Say Anna.", *args).stdout)
    long = json.loads(qwen_edge("run", tiny_path, "Say Anna.", "-f", notes, *args).stdout)
    assert long["stats"]["prompt_tokens"] > short["stats"]["prompt_tokens"] + 300
    notes.write_bytes(b"caf\xe9")
    refused = qwen_edge("run", tiny_path, "-f", notes)
    assert refused.returncode == 1
    assert f"{notes} is not in UTF-8: byte 0xe9 at offset 3" in refused.stderr


def test_verbose_tells_each_step_and_the_native_log(tiny_bf16: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "qwen_edge",
        "--verbose",
        "run",
        str(tiny_bf16),
        "Say Anna.",
        "--threads",
        "1",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0
    assert re.search(r"^\[ +\d+ ms\] loading .*tiny-bf16\.gguf$", result.stderr, re.MULTILINE)
    assert "loaded by llama.cpp: qwen3" in result.stderr
    assert "llama_model_loader" in result.stderr


def test_chat_answers_each_line_of_a_pipe(tiny_path: Path) -> None:
    turns = "Say Anna.\n\n/stats\n/new\n/nonsense\nSay Karl.\n/exit\nSay Otto.\n"
    result = qwen_edge("chat", tiny_path, "--thinking", "off", "--temperature", "0", stdin=turns)
    assert (result.returncode, result.stdout) == (0, "Anna\nKarl\n")
    assert "no command /nonsense" in result.stderr
    assert "a new conversation" in result.stderr


def test_chat_json_is_one_line_a_reply(tiny_path: Path) -> None:
    result = qwen_edge(
        "chat",
        tiny_path,
        "--thinking",
        "off",
        "--temperature",
        "0",
        "--format",
        "json",
        stdin="Say Anna.\nSay Karl.",
    )
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["Anna", "Karl"]


def test_chat_takes_its_commands_from_a_pipe_and_says_the_rest_on_stderr(
    tiny_path: Path, tmp_path: Path
) -> None:
    saved, tools = tmp_path / "a.session", tmp_path / "tools.py"
    tools.write_text('''
def get_weather(city: str) -> dict[str, object]:
    """Current weather of a city."""
    return {"city": city, "temp": 21}
''')
    turns = f'''"""
Say Anna.
"""
/system Be brief.
/think
What is the capital of Greece?
/no_think
/stats
/undo
/history
/save {saved}
//etc
/exit
'''
    result = qwen_edge("chat", tiny_path, "--thinking", "off", "--temperature", "0", stdin=turns)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Anna\nAthens.\n")
    for said in (
        "the system message is set",
        "thinking: ",
        "all answers: 2",
        "taken back: 'What is",
        "you: Say Anna.",
    ):
        assert said in result.stderr
    options = [
        "--load",
        saved,
        "--tools",
        tools,
        "--thinking",
        "off",
        "--temperature",
        "0",
        "--format",
        "json",
    ]
    result = qwen_edge("chat", tiny_path, *options, stdin="How is the weather in Vienna?\n/history\n")
    assert result.returncode == 0, result.stderr
    (answer,) = (json.loads(line) for line in result.stdout.splitlines())
    assert answer["calls_made"][0]["name"] == "get_weather"
    assert "21" in answer["text"]
    assert "restored 1 turn from" in result.stderr
    assert "you: Say Anna." in result.stderr


def test_chat_refuses_what_it_cannot_begin_with(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    for options, said in [
        (["--tools", tmp_path / "absent.py"], "cannot be read"),
        (["--tools", tmp_path / "empty.py"], "defines no function"),
        (["--load", tmp_path / "empty.py"], "no session file"),
    ]:
        result = qwen_edge("chat", tiny_path, *options, stdin="Say Anna.")
        assert (result.returncode, result.stdout) == (1, "")
        assert said in result.stderr


def test_chat_goes_on_after_a_turn_that_does_not_fit(tiny_path: Path) -> None:
    turns = f"{'word ' * 500}\nSay Anna.\n"
    result = qwen_edge(
        "chat", tiny_path, "--n-ctx", "128", "--thinking", "off", "--temperature", "0", stdin=turns
    )
    assert (result.returncode, result.stdout) == (0, "Anna\n")
    assert "holds 128" in result.stderr


def test_ctrl_c_ends_the_program_with_130_and_no_traceback(tiny_path: Path) -> None:
    command = [sys.executable, "-m", "qwen_edge", "chat", str(tiny_path), "--threads", "1"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("Say Anna.\n/stats\n")
    process.stdin.flush()
    while "tokens/s" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)  # the answer is out; now it waits for the next line
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_a_reader_that_goes_away_ends_it_quietly(tiny_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [
        sys.executable,
        "-m",
        "qwen_edge",
        "run",
        str(tiny_path),
        "Say Anna.",
        "--thinking",
        "off",
        "--threads",
        "1",
    ]
    result = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write_end)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["run", "absent.gguf", "Hi"], 1, "no file absent.gguf"),
        (["run", "qwen3-0.6", "Hi"], 1, "Did you mean qwen3-0.6b?"),
        (["run", "qwen2.5-coder-0.5b", "Hi"], 1, "qwen-edge pull qwen2.5-coder-0.5b@Q4_K_M"),
        (["rnu"], 2, "Did you mean 'run'?"),
        (["run"], 2, "Missing argument"),
        (["run", "x", "Hi", "--max-tokens", "0"], 2, "max-tokens"),
        (["run", "x", "Hi", "--thinking", "maybe"], 2, "thinking"),
    ],
)
def test_what_goes_wrong_is_said(
    args: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
